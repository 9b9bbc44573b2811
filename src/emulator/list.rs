//! Lists, a page at a time.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use prost::Message as _;
use tonic::Status;

use super::{Emulator, Shared, filter::Filter, lock};
use crate::proto::{ListOperationsRequest, ListOperationsResponse};

impl Emulator {
    /// Sets the maximum number of operations on a page of a list.
    ///
    /// A request with a larger page size is not an error: it returns a page of this size, as
    /// [AIP-158](https://google.aip.dev/158) specifies. 0 is treated as 1.
    ///
    /// Defaults to 1,000.
    pub fn max_page_size(&self, operations: usize) {
        lock(&self.shared.script).max_page_size = Some(operations.max(1));
    }
}

impl Shared {
    /// Lists the operations under a parent, in the order of their names.
    ///
    /// The parent is the start of a name, up to a slash; an empty one has all operations under it. A page holds at most
    /// what [AIP-158](https://google.aip.dev/158) lets a server choose: 100 operations where nothing is asked, and
    /// never more than [`max_page_size`](Emulator::max_page_size).
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`: a page token that is not from the page before in the same list, a
    /// negative page size, or a filter that is not understood.
    pub(super) fn list(
        &self,
        request: &ListOperationsRequest,
    ) -> Result<ListOperationsResponse, Status> {
        let filter = Filter::parse(&request.filter)?;
        let size = match usize::try_from(request.page_size) {
            Ok(0) => DEFAULT_PAGE,
            Ok(size) => size,
            Err(_) => {
                let message = format!("page_size is negative: {}", request.page_size);
                return Err(Status::invalid_argument(message));
            }
        };
        let max_size = lock(&self.script).max_page_size.unwrap_or(LARGEST_PAGE);
        let size = size.min(max_size);
        let after = last_name(request)?;
        let prefix = match request.name.trim_end_matches('/') {
            "" => String::new(),
            parent => format!("{parent}/"),
        };
        let store = lock(&self.store);
        let mut matching = store
            .range(&prefix, &after)
            .filter(|operation| filter.matches(operation));
        let operations: Vec<_> = matching.by_ref().take(size).cloned().collect();
        let more = matching.next().is_some();
        let next_page_token = match operations.last() {
            Some(last) if more => page_token(request, &last.name),
            _ => String::new(),
        };
        Ok(ListOperationsResponse {
            operations,
            next_page_token,
            unreachable: Vec::new(),
        })
    }
}

/// Makes the token of the page that comes after a name: the list that it belongs to, and the name.
fn page_token(request: &ListOperationsRequest, last_name: &str) -> String {
    let place = ListOperationsRequest {
        name: request.name.clone(),
        filter: request.filter.clone(),
        page_token: last_name.to_owned(),
        ..ListOperationsRequest::default()
    };
    BASE64.encode(place.encode_to_vec())
}

/// Reads what [`page_token`] made.
fn last_name(request: &ListOperationsRequest) -> Result<String, Status> {
    if request.page_token.is_empty() {
        return Ok(String::new());
    }
    let place = BASE64.decode(&request.page_token).ok();
    place
        .and_then(|bytes| ListOperationsRequest::decode(&*bytes).ok())
        .filter(|place| !place.page_token.is_empty())
        .filter(|place| place.name == request.name && place.filter == request.filter)
        .map(|place| place.page_token)
        .ok_or_else(|| {
            Status::invalid_argument(format!(
                "page_token {:?} is not from a page of this list",
                request.page_token
            ))
        })
}

const DEFAULT_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;
