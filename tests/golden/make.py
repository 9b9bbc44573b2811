"""Prints golden.rs: messages as Python's protobuf encodes them, by the published definitions.

    python3 -m venv venv && venv/bin/pip install protobuf googleapis-common-protos
    venv/bin/python tests/golden/make.py > tests/golden/bytes.rs
"""

from google.longrunning import operations_pb2 as lro
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2 as status


def packed(message):
    any_ = any_pb2.Any()
    any_.Pack(message)
    return any_


RETRY = details.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
FAILED = status.Status(code=9, message="not now: é", details=[packed(RETRY)])
NAME = "projects/p/locations/l/operations/1"
RUNNING = lro.Operation(name=NAME, metadata=packed(RETRY))
FAILED_OPERATION = lro.Operation(name=NAME, metadata=packed(RETRY), done=True, error=FAILED)
SUCCEEDED_OPERATION = lro.Operation(name=NAME, done=True, response=packed(FAILED))

MESSAGES = [
    RUNNING,
    FAILED_OPERATION,
    SUCCEEDED_OPERATION,
    lro.GetOperationRequest(name=NAME),
    lro.ListOperationsRequest(
        filter="done=true", page_size=-3, page_token="t", name=NAME, return_partial_success=True
    ),
    lro.ListOperationsResponse(
        operations=[RUNNING, SUCCEEDED_OPERATION], next_page_token="n", unreachable=["a", "b"]
    ),
    lro.CancelOperationRequest(name=NAME),
    lro.DeleteOperationRequest(name=NAME),
    lro.WaitOperationRequest(name=NAME, timeout=duration_pb2.Duration(seconds=60, nanos=1)),
    lro.OperationInfo(response_type="R", metadata_type="M"),
    FAILED,
    details.ErrorInfo(reason="R", domain="d", metadata={"a": "1", "b": "2", "c": "3"}),
    RETRY,
    details.DebugInfo(stack_entries=["f", "g"], detail="d"),
    details.QuotaFailure(
        violations=[
            details.QuotaFailure.Violation(
                subject="s",
                description="d",
                api_service="a",
                quota_metric="m",
                quota_id="i",
                quota_dimensions={"region": "r", "zone": "z"},
                quota_value=-1,
                future_quota_value=0,
            ),
            details.QuotaFailure.Violation(quota_value=1 << 40),
        ]
    ),
    details.PreconditionFailure(
        violations=[
            details.PreconditionFailure.Violation(type="t", subject="s", description="d")
        ]
    ),
    details.BadRequest(
        field_violations=[
            details.BadRequest.FieldViolation(
                field="f",
                description="d",
                reason="R",
                localized_message=details.LocalizedMessage(locale="de", message="m"),
            )
        ]
    ),
    details.RequestInfo(request_id="i", serving_data="d"),
    details.ResourceInfo(
        resource_type="t", resource_name="n", owner="o", description="d"
    ),
    details.Help(links=[details.Help.Link(description="d", url="u")]),
    details.LocalizedMessage(locale="de", message="grüezi"),
]


def main():
    print("// Made by make.py, beside this file: (type, bytes in hexadecimal).")
    print("[")
    for message in MESSAGES:
        name = message.DESCRIPTOR.full_name
        print(f'    ("{name}", "{message.SerializeToString(deterministic=True).hex()}"),')
    print("]")


main()
