//! The address of a server.

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use tonic::{Code, Status};

use crate::status::local;

/// The address of a server, such as `https://automl.googleapis.com`: made of a string or a [`Uri`].
///
/// One that is none is reported when the client is made of it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    uri: Result<Uri, String>,
    text: String,
}

impl From<&str> for Endpoint {
    fn from(text: &str) -> Self {
        Self {
            uri: text.parse().map_err(|error| format!("{error}")),
            text: text.to_owned(),
        }
    }
}

impl From<&String> for Endpoint {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Endpoint {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<Uri> for Endpoint {
    fn from(uri: Uri) -> Self {
        Self {
            text: uri.to_string(),
            uri: Ok(uri),
        }
    }
}

impl Endpoint {
    /// Checks that it is what gRPC can call.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`: it is not.
    pub(crate) fn into_parts(self) -> Result<(Uri, Authority), Status> {
        let Self { uri, text } = self;
        let bad = |why: &str| {
            let message = format!("endpoint {text:?}: {why}");
            Err(local(Code::InvalidArgument, message))
        };
        let uri = match uri {
            Ok(uri) => uri,
            Err(error) => return bad(&error),
        };
        let Some(authority) = uri.authority().cloned() else {
            return bad("no host: write it like https://automl.googleapis.com");
        };
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
            Some(_) => return bad("the scheme must be https or http"),
            None => return bad("no scheme: put https:// before it"),
        }
        if uri.path() != "/" || uri.query().is_some() {
            return bad("gRPC's methods make the path: leave out what follows the host");
        }
        if authority.as_str().contains('@') {
            return bad("leave out what stands before the @");
        }
        if authority.host().is_empty() {
            return bad("no host");
        }
        if authority.as_str() != authority.host()
            && authority.port().is_none_or(|p| p.as_u16() == 0)
        {
            return bad("the port must be a number from 1 to 65535");
        }
        Ok((uri, authority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_of_a_server_is_refused_by_name() {
        let table = [
            ("", "empty string"),
            ("automl.googleapis.com", "no scheme"),
            ("automl.googleapis.com:443", "no scheme"),
            ("ftp://a", "must be https or http"),
            ("https://a/v1", "leave out what follows"),
            ("https://a?b=c", "leave out what follows"),
            ("https://me:secret@a", "before the @"),
            ("https://a:0", "port"),
            ("https://a:65536", "port"),
            ("https://", "invalid"),
            ("/v1/operations", "no host"),
            ("https://a b", "invalid"),
        ];
        for (text, why) in table {
            let status = Endpoint::from(text).into_parts().expect_err(text);
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
    fn an_address_is_a_scheme_a_host_and_maybe_a_port() {
        for text in [
            "https://a",
            "http://127.0.0.1:80/",
            "http://[::1]:50051",
            "HTTPS://a:443",
        ] {
            Endpoint::from(text).into_parts().expect(text);
        }
    }
}
