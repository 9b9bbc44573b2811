"""The steering of the emulator, and the words for what comes of a call."""

import json
import socket

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2


class Control:
    """Lines of JSON over TCP, each answered with one."""

    def __init__(self, port):
        self.file = socket.create_connection(("127.0.0.1", int(port)), timeout=10).makefile("rw")

    def __call__(self, do, **order):
        self.file.write(json.dumps({"do": do, **order}) + "\n")
        self.file.flush()
        return json.loads(self.file.readline())


def play(scripts, control, client, perform):
    """Plays each script, and returns what came of its calls.

    `perform(step, name, parent)` makes the call that a step stands for; of others it knows nothing.
    """
    calls = {"get", "cancel", "delete", "wait", "list", "get within 1s", "result", "cancel and result"}
    results = {}
    for number, script in enumerate(scripts):
        parent = f"projects/{client}-{number}"
        name = f"{parent}/operations/ü 1"
        outcomes = results[script["script"]] = []
        for step in script["steps"]:
            if step in calls:
                outcome = perform(step, name, parent)
                outcomes.append(outcome.replace(f'"{name}"', "NAME"))
                continue
            if step == "seen":
                outcomes.append(control("seen", name=name))
                continue
            event, _, argument = step.partition(" ")
            many = range(int(argument)) if event == "start" and argument else None
            for each in [name] if many is None else [f"{name} {n}" for n in many]:
                control(event, name=each, argument=argument)
    return results


def failed(code, message, reason=""):
    if code == code_pb2.CANCELLED:
        return f"cancelled: {message}{reason}"
    return f"failed: {code_pb2.Code.Name(code)} {message}{reason}"


def refused(code, message, details):
    return f"{code_pb2.Code.Name(code)} {message}{reason(details)}"


def reason(details):
    """The reason of the first ErrorInfo among messages packed into Any."""
    info = error_details_pb2.ErrorInfo()
    return next((f" [{info.reason}]" for any_ in details if any_.Unpack(info)), "")


def state(operation):
    progress = reason([operation.metadata])
    if not operation.done:
        return f"running{progress}"
    if operation.HasField("error"):
        error = operation.error
        return failed(error.code, error.message, reason(error.details)) + progress
    if operation.HasField("response"):
        response = duration_pb2.Duration()
        assert operation.response.Unpack(response), operation
        return f"succeeded: {response.seconds}s{progress}"
    return f"done without result{progress}"
