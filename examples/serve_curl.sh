#!/bin/sh
# Ask `allmem serve` with curl: its models, a whole answer, a stream, a text to be continued, and
# its metrics.
#
#     allmem serve smollm2                    # in another terminal
#     sh examples/serve_curl.sh
#     ALLMEM_API_KEY=secret sh examples/serve_curl.sh http://127.0.0.1:8000
set -eu

url=${1:-http://127.0.0.1:8000}

ask() {
    path=$1
    shift
    curl --silent --show-error --fail-with-body --no-buffer "$url$path" \
        -H "Authorization: Bearer ${ALLMEM_API_KEY:-none}" -H "Content-Type: application/json" "$@"
    echo
}

ask /v1/models
ask /v1/chat/completions -d '{
    "messages": [{"role": "user", "content": "What is a loom?"}],
    "max_tokens": 40
}'
ask /v1/chat/completions -d '{
    "messages": [{"role": "user", "content": "Count to five."}],
    "max_tokens": 40,
    "stream": true,
    "stream_options": {"include_usage": true}
}'
ask /v1/completions -d '{"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}'
ask /metrics | grep '^allmem_generated_tokens_total'
