"""What the gateway remembers and reports about its requests.

One record per request is the only source: the metrics, the log line and ``GET /requests/{id}`` are
all made from it. ``cortex.dispatch`` fills the record while the request runs, the endpoints close
it, and Prometheus and operators read the results.

Read ``request_record`` (times, tokens, fate) first, then ``history`` (the latest requests), then
``metrics`` (every metric, in one place) and ``histograms`` (why they are not prometheus-client's).
"""
