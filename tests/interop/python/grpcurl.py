"""grpcurl on the steered emulator: `grpcurl.py BINARY PROTOS PORT CONTROL`."""

import json
import pathlib
import subprocess
import sys

from google.longrunning import operations_pb2
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2

from steering import Control, play, refused, state

HERE = pathlib.Path(__file__).parent.parent
assert error_details_pb2  # what is packed into an Any must be known


def call(binary, protos, port, method, request, seconds="10"):
    """Makes a call, and returns the answer or the status."""
    command = [binary, "-plaintext", "-format-error", "-max-time", seconds, "-import-path", protos]
    for proto in ("google/longrunning/operations.proto", "google/rpc/error_details.proto"):
        command += ["-proto", proto]
    command += ["-d", json.dumps(request), f"127.0.0.1:{port}", f"google.longrunning.Operations/{method}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if done.returncode == 0:
        return json.loads(done.stdout), None
    status = json_format.Parse(done.stderr, status_pb2.Status())
    assert done.returncode == 64 + status.code, done
    return None, status


def perform(call, step, name, parent):
    if step == "get within 1s":
        answer, status = call("GetOperation", {"name": name}, "1")
        return code_pb2.Code.Name(status.code) if status else str(answer)
    if step == "list":
        count, token = 0, ""
        while True:
            page, _ = call("ListOperations", {"name": parent, "pageToken": token})
            count, token = count + len(page.get("operations", [])), page.get("nextPageToken")
            if not token:
                return str(count)
    if step in ("result", "cancel and result"):
        if step != "result":
            _, status = call("CancelOperation", {"name": name})
            if status:
                return refused(status.code, status.message, status.details)
        answer, status = call("WaitOperation", {"name": name, "timeout": "5s"})
        answer.get("error", {}).pop("details", None)
        answer.pop("metadata", None)
    else:
        method = f"{step.capitalize()}Operation"
        request = {"name": name, "timeout": "5s"} if step == "wait" else {"name": name}
        answer, status = call(method, request)
    if status:
        return refused(status.code, status.message, status.details)
    if step in ("cancel", "delete"):
        assert answer == {}, answer
        return "ok"
    return state(json_format.ParseDict(answer, operations_pb2.Operation()))


def main(binary, protos, port, control):
    scripts = json.loads((HERE / "scripts.json").read_text())
    made = lambda *request: call(binary, protos, port, *request)
    return play(scripts, Control(control), "grpcurl", lambda *step: perform(made, *step))


print(json.dumps(main(*sys.argv[1:]), ensure_ascii=False))
