"""A W&B server of a few lines, on 127.0.0.1: it keeps what clients tell it of runs, and answers what they need to go on.
And offline runs, as wandb reads them."""

import gzip
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

# Of the form that W&B's keys have.
KEY = "0123456789abcdef0123456789abcdef01234567"


def read_offline(output_dir: Path) -> list[dict[str, Any]]:
    """Every offline run that is there: what `wandb leet inspect --summary` says, its group, job type and history."""
    runs = []
    for path in sorted((output_dir / "wandb").glob("offline-run-*/run-*.wandb")):

        def inspect(*options: str, path: Path = path) -> str:
            # As `wandb leet inspect` does, which takes a Python a second to start.
            command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options]
            command += ["--run-file", str(path), str(output_dir / "wandb")]
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout

        run = json.loads(inspect("--summary"))
        records = [json.loads(line) for line in inspect().splitlines()]
        [about] = [record["run"] for record in records if record["type"] == "run"]
        run |= {name: about.get(name) for name in ("run_group", "job_type")}
        run["history"] = [record["history"]["item"] for record in records if record["type"] == "history"]
        runs.append(run)
    return runs


RUN_FIELDS: dict[str, Any] = dict.fromkeys(
    ("sweepName", "group", "jobType", "commit", "createdAt", "heartbeatAt", "systemMetrics", "historyKeys")
)
RUN_FIELDS |= {"historyKeys": {"sets": [], "keys": {}, "lastStep": -1}, "systemMetrics": "{}"}
RUN_FIELDS |= {"state": "finished", "readOnly": False, "projectId": "1"}


@dataclass
class ServedRun:
    """What the server knows of a run."""

    about: dict[str, Any] = field(default_factory=dict)
    """The variables of the last UpsertBucket, those that were null left out."""
    opened: int = 0
    """How often it was opened or changed."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By line number."""
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        values = json.loads(self.about["config"])
        return {name: entry["value"] for name, entry in values.items() if name != "_wandb"}

    def rows(self) -> list[dict[str, Any]]:
        lines = [self.history[number] for number in sorted(self.history)]
        return [{k: v for k, v in line.items() if k == "_step" or not k.startswith("_")} for line in lines]


@dataclass
class WandbServer:
    url: str
    runs: dict[str, ServedRun] = field(default_factory=dict)
    lines: int = 0
    """History lines that came in, in all."""
    refused: tuple[str, int] | None = None
    """Beginning of the ids of runs that are refused when they are opened, and the HTTP status."""
    refusals: int = 0
    refuses_stream: int | None = None
    """The HTTP status with which everything about runs that are open is refused."""
    views: list[dict[str, Any]] = field(default_factory=list)
    """Saved views of the dashboard."""

    def environment(self) -> dict[str, str]:
        patient = {"WANDB_INIT_TIMEOUT": "3600"}  # on a machine that is busy with other things
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"} | patient

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "team", "username": "u", "teams": {"edges": []}, "flags": "{}"}}
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "v", "entity": "team"}}
        if operation == "RunResumeStatus":
            run = self.runs.get(variables["name"])
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "team"}}
            return {"model": project | {"bucket": self.bucket(variables["name"], run) if run else None}}
        if operation == "UpsertBucket":
            run = self.runs.setdefault(variables["name"], ServedRun())
            run.about |= {name: value for name, value in variables.items() if value is not None}
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "team"}}
            bucket = self.bucket(variables["name"], run) | {"project": project, "sweepName": None}
            run.opened += 1
            return {"upsertBucket": {"bucket": bucket, "inserted": run.opened == 1}}
        if operation == "Run":
            run = self.runs.get(variables["name"])
            return {"project": {"run": self.bucket(variables["name"], run) | RUN_FIELDS if run else None}}
        if operation == "UpsertView2":
            self.views.append(variables)
            return {
                "upsertView": {"view": {"id": "view-1", "name": variables["name"]}, "inserted": len(self.views) == 1}
            }
        if operation == "View":
            saved = {"id": "view-1", **self.views[-1]}
            return {"project": {"allViews": {"edges": [{"node": saved}]}}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def bucket(self, name: str, run: ServedRun) -> dict[str, Any]:
        tail = json.dumps([json.dumps(run.history[max(run.history)])]) if run.history else "[]"
        return {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.about.get("displayName"),
            "description": None,
            "config": run.about.get("config", "{}"),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": tail,
            "eventsTail": "[]",
            "tags": run.about.get("tags", []),
            "notes": None,
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run_name: str, told: dict[str, Any]) -> None:
        run = self.runs[run_name]
        files = told.get("files", {})
        if history := files.get("wandb-history.jsonl"):
            for number, line in enumerate(history["content"], history["offset"]):
                self.lines += 1
                run.history[number] = json.loads(line)
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if told.get("complete"):
            run.exit_code = told["exitcode"]


@contextmanager
def serving() -> Iterator[WandbServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def content(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def reply(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int) -> None:
            body = json.dumps({"errors": [{"message": "refused"}], "data": None}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.content()
            if self.path == "/graphql":
                asked = json.loads(body)
                variables = asked.get("variables") or {}
                if (
                    server.refused
                    and "upsertBucket" in asked["query"]
                    and variables["name"].startswith(server.refused[0])
                ):
                    server.refusals += 1
                    self.refuse(server.refused[1])
                    return
                operation = asked.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", asked["query"])[0]
                self.reply({"data": server.answer(operation, variables)})
            elif self.path.endswith("/file_stream") and server.refuses_stream:
                self.refuse(server.refuses_stream)
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
                self.reply({})
            else:
                self.reply({})

        def do_PUT(self) -> None:
            self.do_POST()

        def do_GET(self) -> None:
            self.reply({})

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that goes away without a word is none."""

    http = Server(("127.0.0.1", 0), Handler)
    server = WandbServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
