"""A stateful google.longrunning.Operations server on grpcio: `server.py CERTS`.

It serves on free ports of 127.0.0.1, and tells them in one line of JSON. Operations exist from
the start, and what they do stands in the last segment of their names: see `README.md`.
"""

import asyncio
import json
import os
import pathlib
import re
import sys

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

EMPTY = empty_pb2.Empty()
CODES = {code.value[0]: code for code in grpc.StatusCode}
UNLIMITED = ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)


def packed(message):
    result = any_pb2.Any()
    result.Pack(message)
    return result


def failure(code):
    return status_pb2.Status(
        code=code,
        message=f"nicht möglich: {code_pb2.Code.Name(code)} – 不行 🚫 100%",
        details=[
            packed(error_details_pb2.ErrorInfo(reason="INTEROP", domain="interop.example", metadata={"schlüssel": "wért"})),
            packed(error_details_pb2.LocalizedMessage(locale="ja", message="できません")),
        ],
    )


class Operation:
    """An operation on record, and the event of its end."""

    def __init__(self, name, kind, argument):
        self.message = operations_pb2.Operation(name=name)
        self.kind = kind
        self.ended = asyncio.Event()
        self.asked = 0
        if kind == "succeeded":
            self.succeed()
        elif kind == "failed":
            self.fail(failure(code_pb2.PERMISSION_DENIED))
        elif kind == "noresult":
            self.end()
        elif kind == "ends":
            asyncio.get_running_loop().call_later(argument / 1000, self.succeed)

    def end(self):
        self.message.done = True
        self.ended.set()

    def succeed(self):
        if not self.message.done:
            self.message.response.CopyFrom(packed(duration_pb2.Duration(seconds=42)))
            self.end()

    def fail(self, status):
        if not self.message.done:
            self.message.error.CopyFrom(status)
            self.end()

    def cancel(self):
        if self.kind == "stubborn":
            self.succeed()
        else:
            self.fail(status_pb2.Status(code=code_pb2.CANCELLED, message="abgebrochen ✂"))


class Servicer(operations_pb2_grpc.OperationsServicer):
    KIND = re.compile(r"(?:.*/)?([a-z]+)-?(\d*)[^/]*", re.DOTALL)

    def __init__(self):
        self.operations = {}
        self.deleted = set()

    async def find(self, name, context):
        """Finds an operation, once the call has been through what its name asks for."""
        kind, argument = self.parse(name)
        if kind == "code":
            await self.abort(context, failure(argument))
        if kind == "fat":
            status = failure(code_pb2.ABORTED)
            status.details.append(packed(error_details_pb2.DebugInfo(detail="x" * argument)))
            await self.abort(context, status)
        if kind == "crash":
            os._exit(1)
        if kind == "late":
            await asyncio.sleep(argument / 1000)
        if kind == "hang":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                # The client has gone: the twin of the operation tells it.
                self.get(name.replace("hang", "seen")).succeed()
                raise
        operation = self.get(name)
        if operation is None:
            await self.abort(context, status_pb2.Status(code=code_pb2.NOT_FOUND, message=f"kenne {name!r} nicht"))
        operation.asked += 1
        if kind == "flaky" and operation.asked <= argument:
            await self.abort(context, failure(code_pb2.UNAVAILABLE))
        if kind in ("echo", "flaky"):
            operation.message.metadata.CopyFrom(packed(self.seen(operation, context)))
        return operation

    def parse(self, name):
        match = self.KIND.fullmatch(name)
        return (match[1], int(match[2] or 0)) if match else ("", 0)

    def get(self, name):
        kind, argument = self.parse(name)
        known = "run stubborn succeeded failed noresult ends late echo flaky hang seen".split()
        if kind not in known or name in self.deleted:
            return None
        if name not in self.operations:
            self.operations[name] = Operation(name, kind, argument)
        return self.operations[name]

    @staticmethod
    def seen(operation, context):
        """What this server sees of a call, as a message that every client can read."""
        seen = {}
        for key, value in context.invocation_metadata():
            value = value.hex() if isinstance(value, bytes) else value
            seen[key] = f"{seen[key]}, {value}" if key in seen else value
        remaining = context.time_remaining()
        if remaining is not None:
            seen["remaining-ms"] = str(round(remaining * 1000))
        for name in context.auth_context().get("x509_common_name", []):
            seen["peer"] = name.decode()
        seen["asked"] = str(operation.asked)
        return error_details_pb2.ErrorInfo(reason="SEEN", metadata=seen)

    @staticmethod
    async def abort(context, status):
        trailers = (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("x-answer", "one"),
            ("x-answer", "two"),
            ("x-answer-bin", bytes(range(256))),
        )
        await context.abort(CODES[status.code], status.message, trailers)

    async def GetOperation(self, request, context):
        return (await self.find(request.name, context)).message

    async def CancelOperation(self, request, context):
        (await self.find(request.name, context)).cancel()
        return EMPTY

    async def DeleteOperation(self, request, context):
        await self.find(request.name, context)
        del self.operations[request.name]
        self.deleted.add(request.name)
        return EMPTY

    async def WaitOperation(self, request, context):
        operation = await self.find(request.name, context)
        limit = request.timeout.ToMilliseconds() / 1000 if request.HasField("timeout") else None
        try:
            await asyncio.wait_for(operation.ended.wait(), limit)
        except asyncio.TimeoutError:
            pass
        return operation.message

    async def ListOperations(self, request, context):
        big = re.fullmatch(r"big/(\d+)/(\d+)", request.name)
        if big:
            count, size = int(big[1]), int(big[2])
            padding = any_pb2.Any(type_url="interop.example/Padding", value=b"x" * size)
            found = [operations_pb2.Operation(name=f"big/{n}", metadata=padding) for n in range(count)]
            return operations_pb2.ListOperationsResponse(operations=found)
        kind, argument = self.parse(request.name)
        if kind == "code":
            await self.abort(context, failure(argument))
        names = sorted(name for name in self.operations if name.startswith(request.name + "/operations/"))
        found = [self.operations[name].message for name in names]
        if request.filter:
            if request.filter not in ("done=true", "done=false"):
                await self.abort(context, status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=f"filter {request.filter!r}?"))
            found = [operation for operation in found if operation.done == (request.filter == "done=true")]
        start = int(request.page_token or 0)
        end = start + (request.page_size or len(found))
        return operations_pb2.ListOperationsResponse(
            operations=found[start:end],
            next_page_token=str(end) if end < len(found) else "",
            unreachable=["locations/ü"] if request.return_partial_success else [],
        )


async def main(certs):
    servicer = Servicer()
    servers = []

    async def serve(credentials=None, *options, compression=None):
        server = grpc.aio.server(options=(*UNLIMITED, *options), compression=compression)
        operations_pb2_grpc.add_OperationsServicer_to_server(servicer, server)
        address = "127.0.0.1:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        await server.start()
        servers.append(server)
        return port

    def pem(name):
        return (certs / name).read_bytes()

    def credentials(name, ca=None):
        return grpc.ssl_server_credentials([(pem(f"{name}.key"), pem(f"{name}.pem"))], ca, ca is not None)

    ports = {
        "plain": await serve(),
        "tls": await serve(credentials("server")),
        "mtls": await serve(credentials("server", pem("ca.pem"))),
        "elsewhere": await serve(credentials("elsewhere")),
        "gzip": await serve(compression=grpc.Compression.Gzip),
        "narrow": await serve(None, ("grpc.max_concurrent_streams", 10)),
        "aging": await serve(None, ("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 2000)),
    }
    print(json.dumps(ports), flush=True)
    await asyncio.gather(*(server.wait_for_termination() for server in servers))


asyncio.run(main(pathlib.Path(sys.argv[1])))
