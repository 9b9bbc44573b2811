//! What an [`Operation`] says: whether it has ended, how, and with what.

use prost::{Message, Name};
use prost_types::Any;
use tonic::{Code, Status};

pub use crate::proto::Operation;
use crate::{
    proto::{operation, rpc},
    status::{Delivery, Origin, local, mark, with_delivery},
};

impl Operation {
    /// Returns how the operation ended, if it has.
    ///
    /// The error code is read as [AIP-151](https://google.aip.dev/151) and the cancel method
    /// define it: code 1 is [`Outcome::Cancelled`]. A service that reports a cancellation in some
    /// other way, say within its response, shows as what it sent.
    pub fn outcome(&self) -> Outcome {
        match (self.done, &self.result) {
            (false, _) => Outcome::Running,
            (true, None) => Outcome::DoneWithoutResult,
            (true, Some(operation::Result::Response(_))) => Outcome::Succeeded,
            (true, Some(operation::Result::Error(error))) => match failure(error) {
                status if status.code() == Code::Cancelled => Outcome::Cancelled(status),
                status => Outcome::Failed(status),
            },
        }
    }

    /// Returns the response of an operation that succeeded, if it is an `M`.
    ///
    /// # Errors
    ///
    /// - The operation's own error, if it failed or was cancelled: code, message and details, as in
    ///   [`Outcome`].
    /// - `FAILED_PRECONDITION`: it is not done.
    /// - `UNKNOWN`: it is done, with neither response nor error.
    /// - `INVALID_ARGUMENT`: the response is of another type; the message names both.
    /// - `INTERNAL`: the bytes of the response are no `M`.
    pub fn into_response<M: Message + Name + Default>(self) -> Result<M, Status> {
        let (name, response) = self.into_any()?;
        typed(&name, "response", &response)
    }

    /// Returns the response of an operation that succeeded, taken for an `M`.
    ///
    /// For message types that do not implement [`Name`]. That the type is right is the caller's
    /// claim: the bytes of another message may well decode into an `M` of no meaning.
    ///
    /// # Errors
    ///
    /// As [`into_response`](Self::into_response), but for the type.
    pub fn into_response_ignoring_type<M: Message + Default>(self) -> Result<M, Status> {
        let (name, response) = self.into_any()?;
        decoded(&name, "response", &response)
    }

    /// Returns the operation's metadata, such as its progress, if it has any and they are an `M`.
    ///
    /// [`Name`] is what `prost_build::Config::enable_type_names` makes, or three lines by hand; for
    /// messages without it there is [`metadata_ignoring_type`](Self::metadata_ignoring_type).
    ///
    /// # Errors
    ///
    /// - `INVALID_ARGUMENT`: the metadata are of another type; the message names both.
    /// - `INTERNAL`: the bytes of the metadata are no `M`.
    pub fn metadata_as<M: Message + Name + Default>(&self) -> Result<Option<M>, Status> {
        let metadata = self.metadata.as_ref();
        metadata
            .map(|metadata| typed(&self.name, "metadata", metadata))
            .transpose()
    }

    /// Returns the operation's metadata, if it has any, taken for an `M`.
    ///
    /// For message types that do not implement [`Name`], see
    /// [`into_response_ignoring_type`](Self::into_response_ignoring_type).
    ///
    /// # Errors
    ///
    /// `INTERNAL`: the bytes of the metadata are no `M`.
    pub fn metadata_ignoring_type<M: Message + Default>(&self) -> Result<Option<M>, Status> {
        let metadata = self.metadata.as_ref();
        metadata
            .map(|metadata| decoded(&self.name, "metadata", metadata))
            .transpose()
    }

    /// Takes the response out, or tells why there is none.
    fn into_any(self) -> Result<(String, Any), Status> {
        let name = self.name;
        match (self.done, self.result) {
            (false, _) => Err(of_result(
                Code::FailedPrecondition,
                format!(
                    "operation {name:?} is not done: wait for it before asking for its response"
                ),
            )),
            (true, None) => Err(of_result(
                Code::Unknown,
                format!(
                    "operation {name:?} is done, but the server set neither a response nor an error"
                ),
            )),
            (true, Some(operation::Result::Error(error))) => Err(failure(&error)),
            (true, Some(operation::Result::Response(response))) => Ok((name, response)),
        }
    }
}

/// Returns the location in the name of an operation, such as `us-central1` in
/// `projects/p/locations/us-central1/operations/1`.
///
/// The location is the ID that follows the collection `locations`; a name consists of pairs of a collection
/// and an ID ([AIP-122](https://google.aip.dev/122)). Returns `None` if there is no location, or if it is not
/// a valid label of a host name: up to 63 lower-case letters, digits and hyphens, with no hyphen at either
/// end. So the result is also `None` for `-`, the wildcard for all locations.
pub fn location(name: &str) -> Option<&str> {
    let mut segments = name.split('/');
    let id = loop {
        let (collection, id) = (segments.next()?, segments.next()?);
        if collection == "locations" {
            break id;
        }
    };
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = (1..=63).contains(&id.len())
        && id.bytes().all(is_allowed)
        && !id.starts_with('-')
        && !id.ends_with('-');
    is_label.then_some(id)
}

/// How an operation ended, as far as its latest known state tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It has not ended.
    Running,
    /// It has a response.
    Succeeded,
    /// Its error is `CANCELLED`.
    Cancelled(Status),
    /// It has another error.
    ///
    /// One whose code is 0, which says that there is none, is `UNKNOWN`, and its message says so.
    /// So is one whose code gRPC does not know: that code stays in the details.
    Failed(Status),
    /// It is done, and the server set neither a response nor an error: how it ended is not known.
    DoneWithoutResult,
}

/// The error of an operation. An error whose code is 0 is still an error.
fn failure(error: &rpc::Status) -> Status {
    let status = Status::from(error.clone());
    let status = match status.code() {
        Code::Ok => {
            let message = format!("the operation's error has the code 0: {}", status.message());
            Status::with_details(Code::Unknown, message, status.details().to_vec().into())
        }
        _ => status,
    };
    mark(status, Origin::Server, Delivery::Answered)
}

/// Creates a status about an operation that a server has returned.
fn of_result(code: Code, message: String) -> Status {
    with_delivery(local(code, message), Delivery::Answered)
}

fn typed<M: Message + Name + Default>(name: &str, what: &str, any: &Any) -> Result<M, Status> {
    let found = any.type_url.rsplit('/').next().unwrap_or_default();
    let expected = M::full_name();
    if found == expected {
        return decoded(name, what, any);
    }
    Err(of_result(
        Code::InvalidArgument,
        format!("the {what} of operation {name:?} is a {found:?}, not a {expected:?}"),
    ))
}

fn decoded<M: Message + Default>(name: &str, what: &str, any: &Any) -> Result<M, Status> {
    M::decode(&*any.value).map_err(|error| {
        let type_url = &any.type_url;
        let what = format!("the {what} of operation {name:?}, a {type_url:?}");
        of_result(
            Code::Internal,
            format!("{what}, cannot be decoded: {error}"),
        )
    })
}
