//! The headers of every call, and the limit on their size.

use std::{fmt, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE, TE, USER_AGENT},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tonic::{Code, Status};

use super::message;
use crate::{
    deadline::{GRPC_TIMEOUT, TimeoutCache},
    status::local,
};

pub(crate) const REQUEST_PARAMS: HeaderName = HeaderName::from_static("x-goog-request-params");
pub(crate) const API_CLIENT: HeaderName = HeaderName::from_static("x-goog-api-client");
pub(crate) const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The default limit on the total size of the headers, which
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests) recommends to
/// servers.
pub(crate) const MAX_HEADER_LIST_SIZE: usize = 8 << 10;

/// The client library and its versions, for the statistics of Google's services.
pub(crate) fn api_client() -> HeaderValue {
    HeaderValue::from_static(env!("LONGRUNNING_API_CLIENT"))
}

/// The headers of every call, from which those of an attempt are made.
///
/// It also has the names of the headers that nearly every call sets: to clone the map, and then to
/// replace values, is much cheaper than to build it. The attempt sets them, or removes them.
///
/// As in [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests),
/// `grpc-timeout` comes first, and protocol headers precede custom metadata. A `HeaderMap` keeps the
/// order of insertion, but a removal moves the last header into the gap: so no protocol header is ever
/// removed.
#[derive(Clone)]
pub(crate) struct Template(Arc<Templates>);

struct Templates {
    timed: HeaderMap,
    untimed: HeaderMap,
    timeouts: TimeoutCache,
}

/// Omits the headers, which are the same for all calls of a client.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

impl Default for Template {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Template {
    pub(crate) fn new(user_agent: Option<&HeaderValue>) -> Self {
        let headers = |is_timed: bool| {
            let mut headers = HeaderMap::with_capacity(8);
            let empty = HeaderValue::from_static("");
            if is_timed {
                headers.insert(GRPC_TIMEOUT, empty.clone());
            }
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            if let Some(encodings) = message::ACCEPTED_ENCODINGS {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(encodings));
            }
            if let Some(user_agent) = user_agent {
                headers.insert(USER_AGENT, user_agent.clone());
            }
            headers.insert(API_CLIENT, api_client());
            headers.insert(AUTHORIZATION, empty.clone());
            headers.insert(REQUEST_PARAMS, empty);
            headers
        };
        Self(Arc::new(Templates {
            timed: headers(true),
            untimed: headers(false),
            timeouts: TimeoutCache::default(),
        }))
    }

    pub(crate) fn timeout_cache(&self) -> &TimeoutCache {
        &self.0.timeouts
    }

    /// Returns the headers of every call and the caller's metadata. If `is_timed`, the first header is an
    /// empty `grpc-timeout`, which the attempt sets.
    pub(crate) fn headers(&self, caller: &HeaderMap, is_timed: bool) -> HeaderMap {
        let template = if is_timed {
            &self.0.timed
        } else {
            &self.0.untimed
        };
        let mut headers = template.clone();
        for name in caller.keys() {
            for (index, value) in caller.get_all(name).iter().enumerate() {
                if index == 0 {
                    headers.insert(name.clone(), value.clone());
                } else {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        headers
    }
}

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
/// `INVALID_ARGUMENT`: it is larger than the limit for all headers.
pub(crate) fn routing(name: &str, limit: usize) -> Result<HeaderValue, Status> {
    const KEY: &str = "name=";
    let mut header = String::with_capacity(KEY.len() + name.len() + name.len() / 2);
    header.push_str(KEY);
    for part in utf8_percent_encode(name, RESERVED) {
        if header.len() + part.len() > limit {
            return Err(too_long(name, limit));
        }
        header.push_str(part);
    }
    let mut value = HeaderValue::try_from(header).map_err(|_| too_long(name, limit))?;
    // It differs with every operation: indexed, it would only push others out of HPACK's table.
    value.set_sensitive(true);
    Ok(value)
}

fn too_long(name: &str, limit: usize) -> Status {
    let start: String = name.chars().take(40).collect();
    local(
        Code::InvalidArgument,
        format!(
            "the operation's name {start:?}.. of {} bytes needs a routing header ({REQUEST_PARAMS}) of more than {limit} bytes, the limit for all headers (max_header_list_size)",
            name.len()
        ),
    )
}

/// Checks the total size of the headers of a request. A server may refuse a larger request, or close the
/// connection, which fails the other calls on it.
///
/// # Errors
///
/// `INVALID_ARGUMENT`: they are larger than the limit. The message names the largest.
pub(crate) fn check_size(headers: &HeaderMap, is_retry: bool, limit: usize) -> Result<(), Status> {
    /// What HTTP/2 counts for each header beside its name and value, see
    /// <https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2>.
    const OVERHEAD: usize = 32;
    /// An estimate for the pseudo-headers, with an authority of about 90 bytes.
    const PSEUDO_HEADERS: usize = 300;
    /// The largest size of the header that only retries have: a call that fits is not rejected later.
    const PREVIOUS_ATTEMPTS: usize = 68;
    let size =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + OVERHEAD;
    let retry = if is_retry { 0 } else { PREVIOUS_ATTEMPTS };
    let bytes: usize = PSEUDO_HEADERS + retry + headers.iter().map(size).sum::<usize>();
    if bytes <= limit {
        return Ok(());
    }
    let sizes = headers.keys().map(|name| {
        let values = headers.get_all(name).iter();
        (values.map(|value| size((name, value))).sum::<usize>(), name)
    });
    let (largest, name) = sizes
        .max_by_key(|(bytes, _)| *bytes)
        .unwrap_or((0, &CONTENT_TYPE));
    Err(local(
        Code::InvalidArgument,
        format!(
            "the request's headers are {bytes} bytes, and the limit (max_header_list_size) is {limit}: the largest is {name} with {largest} bytes"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn header(name: &str) -> String {
        let value = routing(name, MAX_HEADER_LIST_SIZE).expect("short enough");
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
        let longest = "a".repeat(MAX_HEADER_LIST_SIZE - "name=".len());
        assert_eq!(header(&longest).len(), MAX_HEADER_LIST_SIZE);
        for name in [format!("{longest}a"), "/".repeat(MAX_HEADER_LIST_SIZE / 3)] {
            let status = routing(&name, MAX_HEADER_LIST_SIZE).expect_err("too long");
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
