//! The status of a call that ended with an error in place of a response.
//!
//! tonic has such a mapping, but it differs with tonic's features, and maps an expired deadline to
//! CANCELLED. This one examines the errors themselves.

use std::{error::Error, io};

use h2::Reason;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

use super::{Delivery, Origin, caused, mark};

/// Finds the first error in the chain of sources that tells how the call ended.
///
/// - A connection that is refused, broken or cannot be made is `UNAVAILABLE`, see
///   [gRPC's status codes](https://github.com/grpc/grpc/blob/master/doc/statuscodes.md).
/// - A stream that the peer resets follows
///   [gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors).
/// - A timeout of the client is `DEADLINE_EXCEEDED`.
/// - Anything else is `UNKNOWN`.
pub(crate) fn classify(error: Box<dyn Error + Send + Sync>) -> Status {
    let error = match error.downcast::<Status>() {
        Ok(status) if status.code() != Code::Ok => return of_layer(*status),
        Ok(status) => status,
        Err(error) => error,
    };
    let found = find(&*error).or_else(|| {
        // Only now: an `io::Error` may be the mere wrapping of one that tells more.
        let broken = chain(&*error).any(|error| error.is::<io::Error>());
        broken.then_some(transport(Code::Unavailable))
    });
    match found.unwrap_or(transport(Code::Unknown)) {
        Found::Status(status) => of_layer(status.clone()),
        // A layer of the stack may have sent the call before, and retried it by itself.
        Found::Code(code, origin) => {
            caused(code, text(&*error), origin, Delivery::MaybeSent, error)
        }
    }
}

enum Found<'a> {
    /// A layer of the stack raised a status.
    Status(&'a Status),
    Code(Code, Origin),
}

fn transport(code: Code) -> Found<'static> {
    Found::Code(code, Origin::Transport)
}

/// Returns the status of a layer, which may have been raised before or after the call was sent.
fn of_layer(status: Status) -> Status {
    mark(status, Origin::Client, Delivery::MaybeSent)
}

fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<Found<'a>> {
    chain(error).find_map(|error| {
        // An error that says OK says nothing.
        if let Some(status) = error
            .downcast_ref::<Status>()
            .filter(|s| s.code() != Code::Ok)
        {
            return Some(Found::Status(status));
        }
        if error.is::<TimeoutExpired>()
            || error.is::<tower::timeout::error::Elapsed>()
            || error.is::<tokio::time::error::Elapsed>()
        {
            return Some(Found::Code(Code::DeadlineExceeded, Origin::Client));
        }
        if error.is::<tower::load_shed::error::Overloaded>() {
            return Some(Found::Code(Code::ResourceExhausted, Origin::Client));
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return Some(Found::Code(of_http2(error), Origin::Transport));
        }
        let broken = error.is::<ConnectError>()
            || error.is::<tower::buffer::error::Closed>()
            || error.downcast_ref::<hyper::Error>().is_some_and(broken);
        broken.then_some(transport(Code::Unavailable))
    })
}

/// Returns whether the server reports that it did not process the call: it refused the stream, or sent a
/// GOAWAY whose last stream ID is lower than that of the call.
pub(crate) fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// Returns whether hyper reports that the connection has failed, without a cause.
fn broken(error: &hyper::Error) -> bool {
    let closed = error.is_canceled() || error.is_closed() || error.is_incomplete_message();
    let dead = error.is_timeout(); // a keepalive ping without an answer
    (closed || dead) && !chain(error).any(|cause| cause.is::<h2::Error>())
}

fn of_http2(error: &h2::Error) -> Code {
    if error.is_io() || error.is_go_away() {
        return Code::Unavailable;
    }
    match error.reason() {
        Some(
            Reason::NO_ERROR
            | Reason::PROTOCOL_ERROR
            | Reason::INTERNAL_ERROR
            | Reason::FLOW_CONTROL_ERROR
            | Reason::FRAME_SIZE_ERROR
            | Reason::COMPRESSION_ERROR
            | Reason::CONNECT_ERROR
            | Reason::SETTINGS_TIMEOUT
            // Not in the table, which would make it UNKNOWN. grpc-go and grpc-java map it to INTERNAL.
            | Reason::STREAM_CLOSED,
        ) => Code::Internal,
        Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        _ => Code::Unknown,
    }
}

/// The error and its sources, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An `io::Error` that wraps another one gives that one's source as its own.
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as _),
            None => error.source(),
        }
    })
}

/// What each error of the chain adds to what is said already.
fn text(error: &(dyn Error + 'static)) -> String {
    chain(error).fold(String::new(), |text, error| match error.to_string() {
        more if text.contains(&more) => text,
        more if text.is_empty() => more,
        more => format!("{text}: {more}"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::CallStatusExt as _;

    fn classified(error: impl Into<Box<dyn Error + Send + Sync>>) -> (Code, Option<Origin>) {
        let status = classify(error.into());
        (status.code(), status.origin())
    }

    #[test]
    fn a_reset_by_the_peer_follows_the_table_of_grpc() {
        let table = [
            (Reason::NO_ERROR, Code::Internal),
            (Reason::PROTOCOL_ERROR, Code::Internal),
            (Reason::INTERNAL_ERROR, Code::Internal),
            (Reason::FLOW_CONTROL_ERROR, Code::Internal),
            (Reason::SETTINGS_TIMEOUT, Code::Internal),
            (Reason::STREAM_CLOSED, Code::Internal),
            (Reason::FRAME_SIZE_ERROR, Code::Internal),
            (Reason::REFUSED_STREAM, Code::Unavailable),
            (Reason::CANCEL, Code::Cancelled),
            (Reason::COMPRESSION_ERROR, Code::Internal),
            (Reason::CONNECT_ERROR, Code::Internal),
            (Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
            (Reason::INADEQUATE_SECURITY, Code::PermissionDenied),
            (Reason::HTTP_1_1_REQUIRED, Code::Unknown),
        ];
        for (reason, code) in table {
            let error = h2::Error::from(reason);
            assert_eq!(
                classified(error),
                (code, Some(Origin::Transport)),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn a_broken_connection_is_unavailable() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(
            classified(reset),
            (Code::Unavailable, Some(Origin::Transport))
        );
        let refused = ConnectError("connection refused".into());
        assert_eq!(
            classified(refused),
            (Code::Unavailable, Some(Origin::Transport))
        );
    }

    #[test]
    fn an_io_error_that_wraps_the_cause_does_not_hide_it_from_the_text() {
        let status = classify(io::Error::other(ConnectError("no route".into())).into());
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "no route");
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_is_up_is_deadline_exceeded() {
        let ours = (Code::DeadlineExceeded, Some(Origin::Client));
        assert_eq!(classified(TimeoutExpired(())), ours);
        assert_eq!(classified(tower::timeout::error::Elapsed::new()), ours);
        let late = tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>());
        let late = late.await.expect_err("it never ends");
        assert_eq!(classified(late), ours);
    }

    #[test]
    fn a_status_that_a_layer_raised_keeps_its_words() {
        let status = classify(Status::permission_denied("not on Sundays").into());
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "not on Sundays");
        assert_eq!(status.origin(), Some(Origin::Client));
    }

    #[test]
    fn a_failure_is_never_ok() {
        let status = Status::ok("fine");
        assert_eq!(classified(status), (Code::Unknown, Some(Origin::Transport)));
    }

    #[test]
    fn what_is_not_known_is_unknown() {
        assert_eq!(
            classified("what?"),
            (Code::Unknown, Some(Origin::Transport))
        );
    }
}
