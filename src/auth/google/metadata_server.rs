//! Google Cloud's metadata server, and the tokens of this machine's accounts.

use std::{fmt, fs, time::Duration};

use bytes::Bytes;
use http::{Request, Uri, header::RETRY_AFTER, uri::Authority};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, timeout_at},
};
use tonic::Status;
use tower::BoxError;

use super::{
    adc::variable,
    oauth::{ErrorResponse, no_token, root_cause},
};
use crate::{
    auth::{
        failure::{is_known_token, refused, unavailable},
        token::Token,
    },
    expiry::Expiry,
    transport::Dial,
};

/// The link-local address of the metadata server.
const ADDRESS: &str = "169.254.169.254";
/// The connect timeout, as in Google's libraries. The server accepts in milliseconds, but may start
/// after the first process of a pod.
const CONNECT: Duration = Duration::from_secs(3);
/// The delay between attempts to connect.
const RECONNECT: Duration = Duration::from_millis(100);
const MAX_RESPONSE: usize = 64 * 1024;
const HOST_VARIABLE: &str = "GCE_METADATA_HOST";
/// The variable that disables the metadata server, as in Google's library for Python.
const OFF_VARIABLE: &str = "NO_GCE_CHECK";
/// The characters that are escaped in a query.
const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The file with the DMI product name on Linux.
const PRODUCT_NAME: &str = "/sys/class/dmi/id/product_name";

/// The address of the metadata server.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MetadataServer {
    /// The usual address; there may be no server.
    Usual,
    /// The address from `GCE_METADATA_HOST`.
    Named(Authority),
    /// `GCE_METADATA_HOST` is not a host.
    Invalid,
    /// `NO_GCE_CHECK` is set.
    Off,
}

impl MetadataServer {
    /// Reads the environment.
    pub(super) fn of_environment() -> Self {
        if let Some(host) = variable(HOST_VARIABLE) {
            let authority = host.into_string().ok().and_then(|host| authority(&host));
            return authority.map_or(Self::Invalid, Self::Named);
        }
        match variable(OFF_VARIABLE) {
            Some(value) if value.eq_ignore_ascii_case("true") => Self::Off,
            _ => Self::Usual,
        }
    }

    /// Fetches a token, without a time limit for the response.
    ///
    /// # Errors
    ///
    /// - `UNAUTHENTICATED`: there is no metadata server, or it refuses the request.
    /// - `UNAVAILABLE`: a temporary failure. This includes a server that does not respond, if it is
    ///   required, or if the environment or the machine's product name specifies that there is one.
    pub(super) async fn token(
        &self,
        account: Option<&str>,
        scopes: &[String],
        is_required: bool,
    ) -> Result<Token, Status> {
        let host = match self {
            Self::Usual => &Authority::from_static(ADDRESS),
            Self::Named(host) => host,
            Self::Invalid => {
                return Err(refused(format_args!(
                    "{HOST_VARIABLE} is not a host, or a host and a port, such as \
                     metadata.google.internal:80: set it so, or unset it"
                )));
            }
            Self::Off => {
                return Err(refused(format_args!(
                    "{OFF_VARIABLE} says that there is no metadata server of Google Cloud"
                )));
            }
        };
        let failed = |what: &'static str| {
            move |error: BoxError| {
                unavailable(format_args!("{self} {what}: {}", root_cause(&*error)))
            }
        };
        // Taken before the request, so that the expiry is not too late.
        let begin = Expiry::now();
        let is_expected = || is_required || *self != Self::Usual || is_google();
        let stream = match connect(host).await {
            Err(_) if !is_expected() => return Err(absent()),
            stream => stream.map_err(failed("cannot be reached"))?,
        };
        let target = target(account, scopes);
        let response = fetch(stream, host, &target)
            .await
            .map_err(failed("sent no usable response"))?;
        // Other clouds have a server at the same address. Not checked for `GCE_METADATA_HOST`,
        // because an emulator may not send this header.
        if *self == Self::Usual && !response.is_googles() && !is_expected() {
            return Err(absent());
        }
        if *self == Self::Usual && !response.is_googles() && response.0.status().is_success() {
            return Err(no_token(&self.to_string()));
        }
        response.token(&self.to_string(), begin)
    }
}

impl fmt::Display for MetadataServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(host) => write!(f, "the metadata server {host}"),
            Self::Usual | Self::Invalid | Self::Off => write!(f, "the metadata server {ADDRESS}"),
        }
    }
}

fn absent() -> Status {
    refused(format_args!(
        "no metadata server of Google Cloud answers at {ADDRESS}"
    ))
}

/// Checks that an account is valid as a path segment.
pub(super) fn check_account(account: &str) -> Result<(), Status> {
    if account.split(' ').any(is_known_token) {
        return Err(refused(
            "the given account of the metadata server looks like a secret and is not quoted: give an \
             email, or None",
        ));
    }
    let is_allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'-');
    let is_account = account.bytes().all(is_allowed)
        && account.bytes().any(|byte| byte.is_ascii_alphanumeric())
        && account.len() <= 256;
    if is_account {
        return Ok(());
    }
    Err(refused(format_args!(
        "{account:?} is not an account of the metadata server: give an email, or None"
    )))
}

/// Parses a host, or a host and a port.
fn authority(host: &str) -> Option<Authority> {
    let authority = host.parse::<Uri>().ok()?.into_parts().authority?;
    let port = host.strip_prefix(authority.host())?;
    let is_valid = !authority.host().is_empty()
        && (port.is_empty() || authority.port_u16().is_some_and(|port| port > 0));
    is_valid.then_some(authority)
}

/// Connects within 3 s. Failures are retried, because the server may still be starting.
async fn connect(host: &Authority) -> Result<impl AsyncRead + AsyncWrite + Unpin, BoxError> {
    let uri: Uri = format!("http://{host}").parse()?;
    let dial = Dial::tcp(None);
    let mut last: BoxError = format!("no connection within {CONNECT:?}").into();
    let attempts = async {
        loop {
            match dial.dial(uri.clone()).await {
                Ok(dialed) => return dialed.io,
                Err(error) => last = error,
            }
            sleep(RECONNECT).await;
        }
    };
    timeout_at(Instant::now() + CONNECT, attempts)
        .await
        .map_err(|_| last)
}

fn target(account: Option<&str>, scopes: &[String]) -> String {
    let account = account.unwrap_or("default");
    let scopes = scopes.join(",");
    let scopes = utf8_percent_encode(&scopes, &RESERVED);
    format!("/computeMetadata/v1/instance/service-accounts/{account}/token?scopes={scopes}")
}

/// A response with its whole body.
struct Response(http::Response<Bytes>);

/// Sends the one request of a connection. Redirects are not followed.
async fn fetch(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &Authority,
    target: &str,
) -> Result<Response, BoxError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(target)
        .header("host", host.as_str())
        .header("metadata-flavor", "Google")
        .header(
            "user-agent",
            concat!("longrunning/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_RESPONSE).collect().await?.to_bytes();
        Ok(Response(http::Response::from_parts(parts, body)))
    };
    // The connection is polled here rather than in a task, so that it is dropped with this future.
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        response = &mut exchange => response,
        // The response may have been received before the connection ended.
        _ = connection => exchange.await,
    }
}

impl Response {
    fn is_googles(&self) -> bool {
        let flavor = self.0.headers().get("metadata-flavor");
        flavor.is_some_and(|flavor| flavor == "Google")
    }

    fn token(&self, endpoint: &str, begin: Expiry) -> Result<Token, Status> {
        if !self.0.status().is_success() {
            let response = ErrorResponse {
                status: self.0.status().as_u16(),
                retry_after: self.0.headers().get(RETRY_AFTER).map(|it| it.as_bytes()),
                body: self.0.body(),
            };
            return Err(response.failure(
                endpoint,
                "check that GCE_METADATA_HOST is set correctly, if it is set",
                "check that the account exists, and that this machine may use it",
            ));
        }
        let body: Value = serde_json::from_slice(self.0.body()).unwrap_or_default();
        let text = |field| body[field].as_str().filter(|text: &&str| !text.is_empty());
        let token = text("access_token")
            .zip(text("token_type"))
            .zip(body["expires_in"].as_u64().filter(|seconds| *seconds > 0))
            .and_then(|((token, kind), seconds)| {
                let mut token = Token::header("authorization", &format!("{kind} {token}")).ok()?;
                token.expiry = Some(begin.later_by(Duration::from_secs(seconds)));
                Some(token)
            });
        token.ok_or_else(|| no_token(endpoint))
    }
}

/// Returns whether the product name says that this is a machine of Google Cloud.
fn is_google() -> bool {
    fs::read_to_string(PRODUCT_NAME).is_ok_and(|name| is_google_product(&name))
}

fn is_google_product(name: &str) -> bool {
    matches!(name.trim(), "Google" | "Google Compute Engine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_have_a_port() {
        for host in [
            "127.0.0.1:80",
            "metadata.google.internal",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(authority(host).is_some(), "{host}");
        }
        for host in [
            "",
            ":80",
            "http://127.0.0.1",
            "a/b",
            "a b",
            "u@h:80",
            "h:",
            "h:0",
            "h:99999",
            "*",
            "/",
        ] {
            assert!(authority(host).is_none(), "{host}");
        }
    }

    #[test]
    fn an_account_is_a_segment_of_a_path() {
        for account in ["default", "me@project.iam.gserviceaccount.com"] {
            assert!(check_account(account).is_ok(), "{account}");
        }
        for account in [
            "",
            "..",
            "a/b",
            "a?b",
            "a b",
            "ä",
            "a\n",
            "ya29.c",
            "Bearer ya29.c",
        ] {
            assert!(check_account(account).is_err(), "{account:?}");
        }
    }

    #[test]
    fn googles_machines_are_known_by_their_product_name() {
        for (name, is_google) in [
            ("Google\n", true),
            ("Google Compute Engine\n", true),
            ("Google Pixelbook\n", false),
            ("Standard PC\n", false),
            ("", false),
        ] {
            assert_eq!(is_google_product(name), is_google, "{name:?}");
        }
    }
}
