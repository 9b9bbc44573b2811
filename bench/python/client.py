"""google-api-core over grpcio: one measurement, printed as the Rust clients print theirs."""

import asyncio
import os
import subprocess
import sys
import time

import grpc
from google.api_core import operations_v1

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
NAMES = [f"operations/projects/p/locations/us-central1/ICN{i * 7919:08}" for i in range(4096)]


def token():
    """The token that the Rust clients send."""
    state, text = 1, "ya29."
    while len(text) < 1024:
        state = (state * 1664525 + 1013904223) % 2**32
        text += LETTERS[state >> 26]
    return text


class Server:
    def __init__(self, binary, plan):
        options = [f"{key}={plan[key]}" for key in ("delay", "streams", "tls")]
        self.child = subprocess.Popen(
            [binary, "server", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.certificate = ""
        while (line := self.child.stdout.readline()) != "\n":
            if not line:
                sys.exit("the server did not start")
            key, _, value = line.strip().partition("=")
            if key == "grpc":
                self.address = value
            elif key != "rest":
                self.certificate += line

    def counts(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        return {k: int(v) for k, v in (pair.split("=") for pair in self.child.stdout.readline().split())}

    def end(self):
        self.child.stdin.close()
        self.child.wait()


def resident():
    """What the process has written, and that with the pages of its program, in bytes."""
    with open("/proc/self/status") as status:
        sizes = dict(line.split(":", 1) for line in status)
    return [int(sizes[key].split()[0]) << 10 for key in ("RssAnon", "VmRSS")]


def channel(server):
    if not server.certificate:
        return grpc.aio.insecure_channel(server.address)
    credentials = grpc.ssl_channel_credentials(server.certificate.encode())
    return grpc.aio.secure_channel("localhost:" + server.address.rsplit(":")[-1], credentials)


async def measure(server, plan):
    before = resident()
    client = operations_v1.OperationsAsyncClient(channel(server))
    bearer = ("authorization", "Bearer " + token())
    concurrency = plan["concurrency"]

    async def cancel(name):
        # A list of its own for each call: google-api-core adds its headers to the list that it gets.
        await client.cancel_operation(name, metadata=[bearer])

    await cancel(NAMES[0])
    if "memory" in plan:
        idle = resident()
        calls = [asyncio.create_task(cancel(NAMES[i % len(NAMES)])) for i in range(concurrency)]
        await asyncio.sleep(plan["delay"] / 1000 - 0.5)
        busy = resident()
        await asyncio.gather(*calls)
        return {
            "idle": idle[0] - before[0],
            "idle_all": idle[1] - before[1],
            "in_flight": (busy[0] - idle[0]) / concurrency,
        }

    latencies = []

    async def worker(number, seconds, record):
        start = called = time.perf_counter()
        index = number * 61
        while called - start < seconds:
            await cancel(NAMES[index % len(NAMES)])
            index += 1
            answered = time.perf_counter()
            if record:
                latencies.append(answered - called)
            called = answered

    async def load(seconds, record):
        await asyncio.gather(*(worker(i, seconds, record) for i in range(concurrency)))

    await load(0.25, False)
    before, cpu, start = server.counts(), time.process_time(), time.perf_counter()
    await load(plan["millis"] / 1000, True)
    elapsed, cpu, after = time.perf_counter() - start, time.process_time() - cpu, server.counts()
    calls = after["calls"] - before["calls"]
    latencies.sort()
    record = {
        "calls": calls,
        "rate": calls / elapsed,
        "cpu": cpu * 1e6 / calls,
        "server_cpu": (after["cpu"] - before["cpu"]) / 1e3 / calls,
        "sent": (after["bytes"] - before["bytes"]) / calls,
    }
    for key, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        record[key] = latencies[int((len(latencies) - 1) * share)] * 1e6
    return record


def main():
    binary, *options = sys.argv[1:]
    plan = {key: int(value) for key, value in (option.split("=") for option in options)}
    if plan["threads"] == 1:
        os.sched_setaffinity(0, {0})
    server = Server(binary, plan)
    try:
        record = asyncio.run(measure(server, plan))
    finally:
        server.end()
    print(" ".join(f"{key}={value}" for key, value in record.items()))


main()
