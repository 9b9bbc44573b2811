//! A server in this very process, without sockets, so that paused time means something.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use longrunning::{
    OperationsClient,
    proto::{
        CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
        ListOperationsResponse, Operation, WaitOperationRequest,
        operations_server::{Operations, OperationsServer},
    },
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// A look at an operation: by Get, or by Wait for so long.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Look {
    Get,
    Wait(Duration),
}

/// What came in: how, when, and with which `grpc-timeout`.
#[allow(dead_code)] // no test needs all of it
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) look: Look,
    pub(crate) at: Instant,
    pub(crate) timeout: Option<String>,
}

/// Answers every look as the closure says; knows no other method but list.
#[derive(Clone)]
pub(crate) struct Server {
    calls: Arc<Mutex<Vec<Call>>>,
    looked: Arc<dyn Fn(Look) -> Answer<Operation> + Send + Sync>,
    listed: Arc<dyn Fn(ListOperationsRequest) -> Answer<ListOperationsResponse> + Send + Sync>,
}

#[allow(dead_code)] // no test needs all of it
impl Server {
    pub(crate) fn of_looks(
        answer: impl Fn(Look) -> Answer<Operation> + Send + Sync + 'static,
    ) -> Self {
        Self {
            calls: Arc::default(),
            looked: Arc::new(answer),
            listed: Arc::new(|_| Box::pin(async { Err(Status::unimplemented("no List")) })),
        }
    }

    pub(crate) fn of_lists(
        answer: impl Fn(ListOperationsRequest) -> Result<ListOperationsResponse, Status>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            listed: Arc::new(move |request| Box::pin(std::future::ready(answer(request)))),
            ..Self::of_looks(|_| Box::pin(async { Err(Status::unimplemented("no looks")) }))
        }
    }

    pub(crate) fn client(&self) -> OperationsClient<OperationsServer<Self>> {
        OperationsClient::new(OperationsServer::new(self.clone()))
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("no panic").clone()
    }

    fn look<R>(&self, request: &Request<R>, look: Look) -> Answer<Operation> {
        let timeout = request.metadata().get("grpc-timeout");
        self.calls.lock().expect("no panic").push(Call {
            look: look.clone(),
            at: Instant::now(),
            timeout: timeout.map(|value| value.to_str().expect("ASCII").to_owned()),
        });
        (self.looked)(look)
    }
}

#[tonic::async_trait]
impl Operations for Server {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let answer = self.look(&request, Look::Get);
        answer.await.map(Response::new)
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let asked = request.get_ref().timeout.expect("a poller says how long");
        let asked = asked.try_into().expect("not negative");
        let answer = self.look(&request, Look::Wait(asked));
        answer.await.map(Response::new)
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let answer = (self.listed)(request.into_inner());
        answer.await.map(Response::new)
    }

    async fn cancel_operation(
        &self,
        _: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn delete_operation(
        &self,
        _: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("no Delete"))
    }
}
