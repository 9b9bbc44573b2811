//! A server in this process whose operations end at set times, and whose faults are set by each test.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use longrunning::{
    OperationsClient,
    proto::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest, operation,
        operations_server::{Operations, OperationsServer},
    },
};
use prost_types::Any;
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status, body::Body};
use tower::util::MapResponse;

/// The server, without the [`Status`] that tonic adds to the extensions of a response. In the same process, the client
/// would find that status, and treat it as one that it created itself.
pub(crate) type Stack =
    MapResponse<OperationsServer<Server>, fn(http::Response<Body>) -> http::Response<Body>>;

#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<State>>);

pub(crate) struct State {
    operations: BTreeMap<String, Stored>,
    pub(crate) faults: Faults,
    pub(crate) calls: Vec<Call>,
    random: fastrand::Rng,
}

struct Stored {
    /// The operation is done from this time on.
    ends_at: Option<Instant>,
    /// It is never in a list.
    is_hidden: bool,
}

/// Nothing fails by default.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// The status of each List call.
    pub(crate) list: Option<(Code, &'static str)>,
    /// The status of each Get call.
    pub(crate) get: Option<(Code, &'static str)>,
    /// The share of calls that fail with `UNAVAILABLE`.
    pub(crate) unavailable: f64,
    /// The share of operations that each page lacks.
    pub(crate) lost: f64,
    /// Whether the first page token comes again after this number of pages.
    pub(crate) tokens_repeat_after: Option<usize>,
    /// Whether each page is empty and has another token.
    pub(crate) pages_never_end: bool,
    /// Whether page tokens are rejected.
    pub(crate) tokens_expire: bool,
    /// The code with which a filter is rejected.
    pub(crate) rejects_filter: Option<Code>,
    /// Whether a filter is ignored.
    pub(crate) ignores_filter: bool,
    /// The pushback of each failed List call, in milliseconds.
    pub(crate) pushback: Option<u64>,
    /// The maximum page size. 0 means 1,000.
    pub(crate) page_size: usize,
    pub(crate) latency: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Method {
    Cancel,
    Get,
    List,
    Wait,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) at: Instant,
    pub(crate) filter: String,
    pub(crate) page_size: i32,
}

impl Default for State {
    fn default() -> Self {
        Self {
            operations: BTreeMap::new(),
            faults: Faults::default(),
            calls: Vec::new(),
            random: fastrand::Rng::with_seed(7),
        }
    }
}

impl Server {
    pub(crate) fn new(faults: Faults) -> Self {
        let server = Self::default();
        server.lock().faults = faults;
        server
    }

    pub(crate) fn client(&self) -> OperationsClient<Stack> {
        OperationsClient::new(self.stack())
    }

    pub(crate) fn stack(&self) -> Stack {
        fn without_extension(mut response: http::Response<Body>) -> http::Response<Body> {
            response.extensions_mut().remove::<Status>();
            response
        }
        MapResponse::new(OperationsServer::new(self.clone()), without_extension)
    }

    /// Starts an operation that is done after the given time, or never.
    pub(crate) fn start(&self, name: impl Into<String>, ends_after: Option<Duration>) {
        self.store(name.into(), ends_after, false);
    }

    /// Starts an operation that is in no list.
    pub(crate) fn start_hidden(&self, name: impl Into<String>, ends_after: Option<Duration>) {
        self.store(name.into(), ends_after, true);
    }

    pub(crate) fn count(&self, method: Method) -> usize {
        let state = self.lock();
        let calls = state.calls.iter();
        calls.filter(|call| call.method == method).count()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    fn store(&self, name: String, ends_after: Option<Duration>, is_hidden: bool) {
        let ends_at = ends_after.map(|after| Instant::now() + after);
        let stored = Stored { ends_at, is_hidden };
        self.lock().operations.insert(name, stored);
    }

    /// Records a call, waits for the latency, and fails at random.
    async fn receive(&self, call: Call) -> Result<(), Status> {
        let latency = {
            let mut state = self.lock();
            state.calls.push(call);
            state.faults.latency
        };
        if !latency.is_zero() {
            sleep(latency).await;
        }
        let mut state = self.lock();
        let share = state.faults.unavailable;
        if state.random.f64() < share {
            return Err(Status::unavailable("try again"));
        }
        Ok(())
    }
}

fn call(method: Method) -> Call {
    Call {
        method,
        at: Instant::now(),
        filter: String::new(),
        page_size: 0,
    }
}

fn failure(fault: Option<(Code, &'static str)>) -> Result<(), Status> {
    fault.map_or(Ok(()), |(code, message)| Err(Status::new(code, message)))
}

impl State {
    fn operation(&self, name: &str) -> Option<Operation> {
        let stored = self.operations.get(name)?;
        let done = stored.ends_at.is_some_and(|at| at <= Instant::now());
        let response = || {
            operation::Result::Response(Any {
                type_url: "type.googleapis.com/test.Done".to_owned(),
                value: Vec::new(),
            })
        };
        Some(Operation {
            name: name.to_owned(),
            done,
            result: done.then(response),
            ..Operation::default()
        })
    }

    fn page(&mut self, request: &ListOperationsRequest) -> Result<ListOperationsResponse, Status> {
        let faults = self.faults.clone();
        failure(faults.list).map_err(|mut status| {
            if let Some(pushback) = faults.pushback {
                let pushback = pushback.into();
                status
                    .metadata_mut()
                    .insert("grpc-retry-pushback-ms", pushback);
            }
            status
        })?;
        if let Some(code) = faults.rejects_filter.filter(|_| !request.filter.is_empty()) {
            return Err(Status::new(code, "no filter is supported"));
        }
        if !request.page_token.is_empty() && faults.tokens_expire {
            return Err(Status::invalid_argument("the page token has expired"));
        }
        if faults.pages_never_end {
            return Ok(ListOperationsResponse {
                next_page_token: self.calls.len().to_string(),
                ..ListOperationsResponse::default()
            });
        }
        let is_filtered = !request.filter.is_empty() && !faults.ignores_filter;
        let start: usize = request.page_token.parse().unwrap_or(0);
        let prefix = format!("{}/operations/", request.name);
        let now = Instant::now();
        let is_done = |stored: &Stored| stored.ends_at.is_some_and(|at| at <= now);
        let names = self.operations.range(prefix.clone()..);
        let names = names.take_while(|(name, _)| name.starts_with(&prefix));
        let names = names.filter(|(_, stored)| !stored.is_hidden);
        let names = names.filter(|(_, stored)| !is_filtered || !is_done(stored));
        let all: Vec<&String> = names.map(|(name, _)| name).collect();
        let size = if faults.page_size == 0 {
            1_000
        } else {
            faults.page_size
        };
        let size = size.min(request.page_size as usize);
        let end = (start + size).min(all.len());
        let mut next_page_token = String::new();
        if end < all.len() {
            next_page_token = end.to_string();
        }
        if faults
            .tokens_repeat_after
            .is_some_and(|pages| end >= pages * size)
        {
            next_page_token = size.to_string();
        }
        let page = &all[start.min(end)..end];
        let operations = page.iter().filter_map(|name| self.operation(name));
        let mut operations: Vec<_> = operations.collect();
        operations.retain(|_| self.random.f64() >= faults.lost);
        Ok(ListOperationsResponse {
            operations,
            next_page_token,
            unreachable: Vec::new(),
        })
    }
}

#[tonic::async_trait]
impl Operations for Server {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.receive(call(Method::Get)).await?;
        let state = self.lock();
        failure(state.faults.get)?;
        let found = state.operation(&request.get_ref().name);
        found
            .map(Response::new)
            .ok_or_else(|| Status::not_found("unknown"))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        self.receive(call(Method::Wait)).await?;
        let timeout = request.get_ref().timeout.expect("a timeout");
        let until = Instant::now() + Duration::from_secs(timeout.seconds as u64);
        let name = &request.get_ref().name;
        loop {
            let operation = self.lock().operation(name);
            let operation = operation.ok_or_else(|| Status::not_found("unknown"))?;
            if operation.done || Instant::now() >= until {
                return Ok(Response::new(operation));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let call = Call {
            filter: request.filter.clone(),
            page_size: request.page_size,
            ..call(Method::List)
        };
        self.receive(call).await?;
        self.lock().page(&request).map(Response::new)
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        self.receive(call(Method::Cancel)).await?;
        let mut state = self.lock();
        let stored = state.operations.get_mut(&request.get_ref().name);
        let stored = stored.ok_or_else(|| Status::not_found("unknown"))?;
        stored.ends_at = Some(Instant::now());
        Ok(Response::new(()))
    }

    async fn delete_operation(
        &self,
        _: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("no Delete"))
    }
}
