"""google-api-core's clients on the steered emulator: `clients.py scripts|names PORT CONTROL`."""

import json
import pathlib
import sys

import grpc
from google.api_core import exceptions, operation, operations_v1
from google.api_core.future import polling
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from steering import Control, failed, play, refused, state

HERE = pathlib.Path(__file__).parent.parent
POLLING = polling.DEFAULT_POLLING.with_delay(initial=0.05, maximum=0.1).with_timeout(10)


def perform(client, stub, step, name, parent):
    try:
        if step == "get":
            return state(client.get_operation(name))
        if step == "get within 1s":
            try:
                return state(client.get_operation(name, timeout=1, retry=None))
            except exceptions.DeadlineExceeded:
                return "DEADLINE_EXCEEDED"
        if step == "cancel":
            client.cancel_operation(name)
            return "ok"
        if step == "delete":
            client.delete_operation(name)
            return "ok"
        if step == "wait":  # which the client has not
            request = operations_pb2.WaitOperationRequest(name=name, timeout=duration_pb2.Duration(seconds=5))
            return state(stub.WaitOperation(request, timeout=10))
        if step == "list":
            return str(len(list(client.list_operations(parent, ""))))
        future = operation.from_gapic(
            client.get_operation(name), client, duration_pb2.Duration, polling=POLLING,
            metadata_type=error_details_pb2.ErrorInfo)
        if step == "cancel and result":
            assert not future.done() and not future.cancelled()
            assert future.cancel()
        return result(future)
    except exceptions.GoogleAPICallError as error:
        return of_call(error.grpc_status_code, error.message, error.response)
    except grpc.RpcError as error:
        return of_call(error.code(), error.details(), error)


def result(future):
    """The end of an operation, as the future tells it. All its methods must agree."""
    exception = future.exception()
    assert future.done()
    if exception is None:
        assert not future.cancelled() and not future.cancel()
        return f"succeeded: {future.result().seconds}s"
    try:
        future.result()
        raise AssertionError("there is an exception, and a result")
    except exceptions.GoogleAPICallError as raised:
        assert raised is exception
    assert not future.cancel(), "it is done"
    if exception.grpc_status_code is None:
        assert "neither response nor error" in exception.message, exception
        return "done without result"
    code = exception.grpc_status_code.value[0]
    assert future.cancelled() == (code == code_pb2.CANCELLED) == isinstance(exception, exceptions.Cancelled)
    return failed(code, exception.message)


def of_call(code, message, call):
    trailers = dict(call.trailing_metadata() or ())
    details = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details
    return refused(code.value[0], message, details)


def main(what, port, control):
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    client = operations_v1.OperationsClient(channel)
    control = Control(control)
    if what == "names":
        control("calls")
        for name in json.loads((HERE / "names.json").read_text()):
            try:
                client.get_operation(name)
                raise AssertionError(f"{name!r} is not there")
            except exceptions.NotFound:
                pass
        return control("calls")
    scripts = json.loads((HERE / "scripts.json").read_text())
    stub = operations_pb2_grpc.OperationsStub(channel)
    return play(scripts, control, "python", lambda *step: perform(client, stub, *step))


print(json.dumps(main(*sys.argv[1:]), ensure_ascii=False))
