"""An OTLP collector on loopback: keeps what exporters send it by HTTP, as protobuf."""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

Attributes = dict[str, Any]


class OtlpCollector:
    """Serves `/v1/metrics` and `/v1/traces` while it is open."""

    def __init__(self) -> None:
        self._metrics: dict[tuple[str, str], list[tuple[Attributes, float]]] = {}
        self.spans: list[tuple[str, Attributes]] = []
        self.scopes: set[str] = set()

    def __enter__(self) -> OtlpCollector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                {"/v1/metrics": collector._metrics_of, "/v1/traces": collector._spans_of}[
                    self.path
                ](body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def total(self, name: str, **labels: object) -> float:
        """The sum of a metric's last values with these attributes; dots are `__` in keywords."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        return sum(
            value
            for (metric, _), points in self._metrics.items()
            for attributes, value in points
            if metric == name and wanted.items() <= attributes.items()
        )

    def by(self, name: str, attribute: str) -> Counter[Any]:
        """The sums of a metric by one attribute."""
        found: Counter[Any] = Counter()
        for (metric, _), points in self._metrics.items():
            for attributes, value in points:
                if metric == name:
                    found[attributes.get(attribute)] += value  # type: ignore[assignment]
        return found

    @property
    def metrics(self) -> set[str]:
        return {name for name, _ in self._metrics}

    def _metrics_of(self, body: bytes) -> None:
        request = ExportMetricsServiceRequest.FromString(body)
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.scopes.add(scope.scope.name)
                for metric in scope.metrics:
                    # Cumulative: the last export has all of it.
                    points = list(_points(metric))
                    self._metrics[metric.name, scope.scope.name] = points

    def _spans_of(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append((span.name, _attributes(span.attributes)))


def _points(metric: Any) -> Iterator[tuple[Attributes, float]]:
    if metric.HasField("histogram"):
        for point in metric.histogram.data_points:
            yield _attributes(point.attributes), point.sum
        return
    for point in metric.sum.data_points:
        is_double = point.WhichOneof("value") == "as_double"
        yield _attributes(point.attributes), point.as_double if is_double else point.as_int


def _attributes(found: Any) -> Attributes:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in found}
