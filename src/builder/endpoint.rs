//! The address of a server.

use std::{fmt, net::IpAddr};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use tonic::{Code, Status};

use crate::{status::local, transport::is_localhost};

/// The address of a server, such as `https://automl.googleapis.com`.
///
/// An invalid address is reported by [`into_parts`](Self::into_parts).
#[derive(Clone)]
pub(crate) struct Endpoint {
    uri: Result<Uri, ()>,
    text: String,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl From<String> for Endpoint {
    fn from(text: String) -> Self {
        Self {
            uri: text.parse().map_err(drop),
            text,
        }
    }
}

impl Endpoint {
    /// What stands before an @ may hold a password, and what stands after a ? a key.
    fn shown(&self) -> String {
        let (address, rest) = match self.text.find(['?', '#']) {
            Some(at) => (&self.text[..at], "?.."),
            None => (self.text.as_str(), ""),
        };
        match address.rsplit_once('@') {
            Some((_, host)) => format!("..@{host}{rest}"),
            // It may be a password that has a ? in it.
            None if self.text.contains('@') => "..".to_owned(),
            None => format!("{address}{rest}"),
        }
    }

    /// Returns whether the scheme is `http`.
    pub(crate) fn is_plaintext(&self) -> bool {
        let uri = self.uri.as_ref();
        uri.is_ok_and(|uri| uri.scheme() == Some(&Scheme::HTTP))
    }

    /// Returns the host, unless it is this machine.
    pub(crate) fn remote_host(&self) -> Option<&str> {
        remote(self.uri.as_ref().ok()?.host()?)
    }

    /// Checks that it is what gRPC can call.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`: it is not.
    pub(crate) fn into_parts(self) -> Result<(Uri, Authority), Status> {
        let text = self.shown();
        let bad = |why: &str| {
            let message = format!("endpoint {text:?}: {why}");
            Err(local(Code::InvalidArgument, message))
        };
        let uri = match self.uri {
            Ok(uri) => uri,
            Err(_) => return bad(&format!("this is no URL: {REMEDY}")),
        };
        let Some(authority) = uri.authority().cloned() else {
            return bad(&format!("no host: {REMEDY}"));
        };
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
            Some(_) => return bad("the scheme must be https or http"),
            None => {
                return bad(
                    "no scheme: put https:// before it, or http:// for a server without TLS",
                );
            }
        }
        // `Uri` drops a fragment when it is parsed.
        if uri.path() != "/" || uri.query().is_some() || self.text.contains('#') {
            return bad("gRPC's methods make the path: leave out what follows the host");
        }
        if authority.as_str().contains('@') {
            return bad("leave out what stands before the @");
        }
        if authority.host().is_empty() {
            return bad(&format!("no host: {REMEDY}"));
        }
        if authority.as_str() != authority.host()
            && authority.port().is_none_or(|port| !is_port(port.as_str()))
        {
            return bad("the port must be a number from 1 to 65535");
        }
        Ok((uri, authority))
    }
}

/// Returns the host, unless it is empty or this machine.
pub(crate) fn remote(host: &str) -> Option<&str> {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = match address.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.is_empty() || is_localhost(host),
    };
    (!is_local).then_some(host)
}

/// Parses a host with an optional port.
///
/// # Errors
///
/// `INVALID_ARGUMENT`: the text is not a host with an optional port.
pub(crate) fn authority(text: &str) -> Result<Authority, Status> {
    let authority = text.parse::<Authority>().ok();
    let is_valid = |authority: &Authority| {
        let rest = &authority.as_str()[authority.host().len()..];
        !authority.as_str().contains('@')
            && !authority.host().is_empty()
            && (rest.is_empty() || authority.port().is_some_and(|port| is_port(port.as_str())))
    };
    authority.filter(is_valid).ok_or_else(|| {
        // The part before an `@` may contain a password.
        let shown = if text.contains('@') { "..@.." } else { text };
        local(
            Code::InvalidArgument,
            format!(
                "invalid authority {shown:?}: expected a host with an optional port, such as automl.googleapis.com"
            ),
        )
    })
}

/// Returns whether the text is a number from 1 to 65535. `u16::from_str` also accepts a leading `+`.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
        && text.parse::<u16>().is_ok_and(|port| port != 0)
}

const REMEDY: &str = "write it like https://automl.googleapis.com";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_of_a_server_is_refused_by_name() {
        let table = [
            ("", "this is no URL"),
            ("automl.googleapis.com", "no scheme"),
            ("automl.googleapis.com:443", "no scheme"),
            ("ftp://a", "must be https or http"),
            ("https://a/v1", "leave out what follows"),
            ("https://a:0", "port"),
            ("https://a:65536", "port"),
            ("https://", "write it like https://"),
            ("/v1/operations", "no host"),
            ("https://a b", "write it like https://"),
        ];
        for (text, why) in table {
            let status = Endpoint::from(text.to_owned())
                .into_parts()
                .expect_err(text);
            assert_eq!(status.code(), Code::InvalidArgument);
            let message = status.message();
            assert!(
                message.starts_with(&format!("endpoint {text:?}: ")),
                "{message}"
            );
            assert!(message.contains(why), "{message}");
        }
    }

    #[test]
    fn a_key_in_an_address_is_refused_and_not_shown() {
        let table = [
            ("https://a?key=secret", "endpoint \"https://a?..\": "),
            ("https://a?for=b@c&key=secret", "endpoint \"..\": "),
            ("https://a:sec?ret@c", "endpoint \"..\": "),
            ("https://b@a#secret@c", "endpoint \"..@a?..\": "),
        ];
        for (text, start) in table {
            let status = Endpoint::from(text.to_owned())
                .into_parts()
                .expect_err("a query");
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with(start), "{status}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_shown() {
        let endpoint = Endpoint::from("https://me:secret@a".to_owned());
        assert!(!format!("{endpoint:?}").contains("secret"));
        let status = endpoint.into_parts().expect_err("a user");
        let message = "endpoint \"..@a\": leave out what stands before the @";
        assert_eq!(status.message(), message);
    }

    #[test]
    fn an_address_is_a_scheme_a_host_and_maybe_a_port() {
        for text in [
            "https://a",
            "http://127.0.0.1:80/",
            "http://[::1]:50051",
            "HTTPS://a:443",
        ] {
            Endpoint::from(text.to_owned()).into_parts().expect(text);
        }
    }

    #[test]
    fn only_plaintext_that_leaves_this_machine_is_open_to_others() {
        let table = [
            ("https://a", false),
            ("http://127.0.0.1:1", false),
            ("http://127.1.2.3", false),
            ("http://[::1]:1", false),
            ("http://[::ffff:127.0.0.1]", false),
            ("http://LocalHost:1", false),
            ("http://localhost.", false),
            ("http://a", true),
            ("http://10.0.0.1", true),
            ("http://[::2]", true),
            ("http://localhost.a", true),
            ("http://localhost..", true),
            ("http://127.0.0.1.a", true),
            ("http://0.0.0.0", true),
            ("http://:80", false),
            ("ftp://a", false),
            ("a.b", false),
        ];
        for (text, open) in table {
            let endpoint = Endpoint::from(text.to_owned());
            let is_open = endpoint.is_plaintext() && endpoint.remote_host().is_some();
            assert_eq!(is_open, open, "{text}");
        }
    }
}
