//! The headers that every call carries, and the bounds of those that the caller adds.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE, TE, USER_AGENT},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tonic::{Code, Status};

use crate::{
    deadline::{GRPC_TIMEOUT, TimeoutCache},
    status::local,
};

pub(crate) const REQUEST_PARAMS: HeaderName = HeaderName::from_static("x-goog-request-params");
pub(crate) const API_CLIENT: HeaderName = HeaderName::from_static("x-goog-api-client");

/// Who calls, for the statistics of Google's services.
pub(crate) fn api_client() -> HeaderValue {
    HeaderValue::from_static(env!("LONGRUNNING_API_CLIENT"))
}

/// The headers of every call, from which those of an attempt are made.
///
/// It also has the names of the headers that nearly every call sets: to clone the map, and then to
/// replace values, is much cheaper than to build it. The attempt sets them, or removes them.
#[derive(Clone, Debug)]
pub(crate) struct Template(Arc<(HeaderMap, TimeoutCache)>);

impl Default for Template {
    fn default() -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(API_CLIENT, api_client());
        for name in [GRPC_TIMEOUT, AUTHORIZATION, REQUEST_PARAMS] {
            headers.insert(name, HeaderValue::from_static(""));
        }
        Self(Arc::new((headers, TimeoutCache::default())))
    }
}

impl Template {
    pub(crate) fn with_user_agent(&self, user_agent: HeaderValue) -> Self {
        let mut headers = self.0.0.clone();
        headers.insert(USER_AGENT, user_agent);
        Self(Arc::new((headers, TimeoutCache::default())))
    }

    pub(crate) fn timeout_cache(&self) -> &TimeoutCache {
        &self.0.1
    }

    /// Returns the headers of every call, with the caller's in their places.
    pub(crate) fn headers(&self, caller: &HeaderMap) -> HeaderMap {
        let mut headers = self.0.0.clone();
        for name in caller.keys() {
            headers.remove(name);
            for value in caller.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        headers
    }
}

/// More makes servers refuse the call, or close the connection and fail the calls beside this one.
const MAX_BYTES: usize = 8 << 10;

/// The same for all headers together. Servers take 16 KiB; the rest is for those of HTTP/2 and
/// gRPC itself.
const MAX_BYTES_IN_ALL: usize = 15 << 10;

/// All but the unreserved characters of [RFC 6570](https://www.rfc-editor.org/rfc/rfc6570#section-3.2.2).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The routing header of a name, see [AIP-4222](https://google.aip.dev/client-libraries/4222).
///
/// # Errors
///
/// `INVALID_ARGUMENT`: the name is too long for a header.
pub(crate) fn routing(name: &str) -> Result<HeaderValue, Status> {
    const KEY: &str = "name=";
    let mut header = String::with_capacity(KEY.len() + name.len() + name.len() / 2);
    header.push_str(KEY);
    for part in utf8_percent_encode(name, RESERVED) {
        if header.len() + part.len() > MAX_BYTES {
            return Err(too_long(name));
        }
        header.push_str(part);
    }
    let mut value = HeaderValue::try_from(header).map_err(|_| too_long(name))?;
    // It differs with every operation: indexed, it would only push others out of HPACK's table.
    value.set_sensitive(true);
    Ok(value)
}

fn too_long(name: &str) -> Status {
    let start: String = name.chars().take(40).collect();
    local(
        Code::InvalidArgument,
        format!(
            "the operation's name {start:?}.. of {} bytes makes a routing header of more than {MAX_BYTES} bytes",
            name.len()
        ),
    )
}

/// Holds the caller's own metadata to the bound of the routing header.
///
/// # Errors
///
/// `INVALID_ARGUMENT`: it is larger.
pub(crate) fn bounded(metadata: &HeaderMap) -> Result<(), Status> {
    within(metadata, MAX_BYTES, "the request's metadata is")
}

/// Holds all headers, the client's own and those of credentials included, to what servers take.
///
/// # Errors
///
/// `INVALID_ARGUMENT`: they are larger.
pub(crate) fn bounded_in_all(headers: &HeaderMap) -> Result<(), Status> {
    let what = "the request's metadata, with routing header and credentials, is";
    within(headers, MAX_BYTES_IN_ALL, what)
}

fn within(headers: &HeaderMap, limit: usize, what: &str) -> Result<(), Status> {
    /// What HTTP/2 counts for each header beside its name and value, see
    /// <https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>.
    const OVERHEAD: usize = 32;
    let bytes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD);
    let bytes: usize = bytes.sum();
    if bytes <= limit {
        return Ok(());
    }
    let message = format!("{what} {bytes} bytes: send at most {limit}");
    Err(local(Code::InvalidArgument, message))
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn header(name: &str) -> String {
        let value = routing(name).expect("short enough");
        value.to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn only_unreserved_characters_stay_as_they_are() {
        assert_eq!(
            header("operations/a-b.c_d~e"),
            "name=operations%2Fa-b.c_d~e"
        );
        assert_eq!(header("a b+c%d=e&f"), "name=a%20b%2Bc%25d%3De%26f");
        assert_eq!(header("é\r\nx: y"), "name=%C3%A9%0D%0Ax%3A%20y");
    }

    #[test]
    fn a_name_that_makes_too_long_a_header_is_refused() {
        let longest = "a".repeat(MAX_BYTES - "name=".len());
        assert_eq!(header(&longest).len(), MAX_BYTES);
        for name in [format!("{longest}a"), "/".repeat(MAX_BYTES / 3)] {
            let status = routing(&name).expect_err("too long");
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(
                status
                    .message()
                    .contains(&format!("of {} bytes", name.len())),
                "{status}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_name_is_one_header_that_decodes_to_it(name in vec(any::<char>(), 0..400)) {
            let name: String = name.into_iter().collect();
            let header = header(&name);
            let (key, value) = header.split_once('=').expect("key=value");
            prop_assert_eq!(key, "name");
            prop_assert!(value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
            prop_assert_eq!(percent_decode_str(value).decode_utf8().expect("UTF-8"), name);
        }
    }
}
