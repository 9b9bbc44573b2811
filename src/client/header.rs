//! The routing header, and the limit on the total size of the headers.

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_TYPE};
use percent_encoding::percent_encode_byte;
use tonic::{Code, Status};

use crate::{
    request::{REQUEST_PARAMS, UnaryHead, size},
    status::local,
};

/// The default limit on the total size of the headers, which
/// [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests) recommends to
/// servers.
pub(crate) const MAX_HEADER_LIST_SIZE: usize = 8 << 10;

/// The routing header of a name, see [AIP-4222](https://google.aip.dev/client-libraries/4222).
///
/// # Errors
///
/// `INVALID_ARGUMENT`: it is larger than the limit for all headers.
pub(crate) fn routing(name: &str, limit: usize) -> Result<HeaderValue, Status> {
    const KEY: &str = "name=";
    if KEY.len() + name.len() > limit {
        return Err(too_long(name, limit));
    }
    let mut header = Vec::with_capacity(KEY.len() + name.len() + name.len() / 2);
    header.extend_from_slice(KEY.as_bytes());
    for byte in name.bytes() {
        match byte {
            // The unreserved characters of https://www.rfc-editor.org/rfc/rfc6570#section-3.2.2
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                header.push(byte)
            }
            _ => header.extend_from_slice(percent_encode_byte(byte).as_bytes()),
        }
    }
    let value = Some(header).filter(|header| header.len() <= limit);
    let value = value.and_then(|header| HeaderValue::from_maybe_shared(Bytes::from(header)).ok());
    let mut value = value.ok_or_else(|| too_long(name, limit))?;
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
pub(crate) fn check_size(head: &UnaryHead, is_retry: bool, limit: usize) -> Result<(), Status> {
    /// An estimate for the pseudo-headers, with an authority of about 90 bytes.
    const PSEUDO_HEADERS: usize = 300;
    /// The largest size of the header that only retries have: a call that fits is not rejected later.
    const PREVIOUS_ATTEMPTS: usize = 68;
    let retry = if is_retry { 0 } else { PREVIOUS_ATTEMPTS };
    if PSEUDO_HEADERS + retry + head.max_size() <= limit {
        return Ok(());
    }
    let headers = head.headers(head.timeout);
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
    use http::HeaderMap;
    use percent_encoding::percent_decode_str;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::request::Template;

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

    #[test]
    fn headers_as_large_as_the_limit_are_accepted() {
        /// The estimate for the pseudo-headers, and what a retry adds.
        const ADDED: usize = 300 + 68;
        let mut metadata = HeaderMap::new();
        metadata.insert("x-large", HeaderValue::from_static("0123456789"));
        // It replaces a header of all calls, so that the quick upper bound is too large.
        metadata.insert("x-goog-api-client", HeaderValue::from_static("other"));
        let head = UnaryHead {
            path: "/service/method",
            template: Template::default(),
            metadata,
            routing: Some(HeaderValue::from_static("name=n")),
            credentials: None,
            timeout: None,
        };
        let bytes = ADDED + head.headers(None).iter().map(size).sum::<usize>();
        check_size(&head, false, bytes).expect("they fit");
        let status = check_size(&head, false, bytes - 1).expect_err("one byte too large");
        assert_eq!(status.code(), Code::InvalidArgument);
        let expected = format!("headers are {bytes} bytes");
        assert!(status.message().contains(&expected), "{status}");
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
