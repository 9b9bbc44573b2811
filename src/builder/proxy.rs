//! HTTP proxy settings from environment variables.

use std::env;

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use tonic::{Code, Status};

use super::endpoint;
use crate::status::local;

/// Returns the proxy for connections to an `https` server, or `None` if they are direct.
///
/// # Errors
///
/// `INVALID_ARGUMENT`: a variable does not name an HTTP proxy. Its value may contain a password, and is
/// not in the message.
pub(super) fn of_environment(server: &Authority) -> Result<Option<Intercept>, Status> {
    let Some((name, proxy)) = variable(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])?
    else {
        return Ok(None);
    };
    let exceptions = variable(&["NO_PROXY", "no_proxy"])?;
    let exceptions = exceptions.map_or_else(String::new, |(_, value)| value);
    let mut server_uri = http::uri::Parts::default();
    server_uri.scheme = Some(Scheme::HTTPS);
    server_uri.authority = Some(server.clone());
    server_uri.path_and_query = Some(PathAndQuery::from_static("/"));
    // Cannot fail: all its parts are there.
    let server_uri = Uri::from_parts(server_uri).unwrap_or_default();
    // `Matcher` ignores a proxy that it cannot use, so this checks, without NO_PROXY, that it accepts this one.
    let matcher = Matcher::builder().https(proxy.clone()).build();
    if !is_http_proxy(&proxy) || matcher.intercept(&server_uri).is_none() {
        let message = format!(
            "{name}: must be the URL of an HTTP proxy, such as http://proxy.example.com:3128"
        );
        return Err(local(Code::InvalidArgument, message));
    }
    // `Matcher` applies `*` to host names, but not to IP addresses.
    if exceptions.split(',').any(|host| host.trim() == "*") {
        return Ok(None);
    }
    let matcher = Matcher::builder().https(proxy).no(exceptions).build();
    Ok(matcher.intercept(&server_uri))
}

/// Returns whether a text is the URL of an HTTP proxy: a host with an optional scheme, user and port.
///
/// `Matcher` accepts more. If a password contains `@`, `/`, `?` or `#`, it would mistake a part of the
/// password for the host, and error messages contain the host.
fn is_http_proxy(url: &str) -> bool {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (_, host) = rest.split_once('@').unwrap_or(("", rest));
    scheme.eq_ignore_ascii_case("http")
        && !rest.contains(['/', '?', '#'])
        && endpoint::authority(host).is_ok()
}

/// Returns the first of these environment variables that is set and not empty.
fn variable(names: &[&'static str]) -> Result<Option<(&'static str, String)>, Status> {
    let mut set = names.iter().filter_map(|name| {
        let value = env::var_os(name).filter(|value| !value.is_empty())?;
        Some((*name, value))
    });
    let Some((name, value)) = set.next() else {
        return Ok(None);
    };
    let value = value
        .into_string()
        .map_err(|_| local(Code::InvalidArgument, format!("{name}: not valid UTF-8")))?;
    Ok(Some((name, value)))
}
