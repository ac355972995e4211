package wire

import "time"

// How long a connection is kept on which nothing is asked. If a server closes one while a
// request is on its way, the request is lost, and nobody knows whether it was begun. So its
// client closes it first: whoever asks keeps it for ClientIdle at most, whoever answers for
// ServerIdle at least.
const (
	// ClientIdle is less than the 5 s after which the servers of vLLM, SGLang and
	// TensorRT-LLM (uvicorn) and llama-server (cpp-httplib) close an idle connection, by a
	// margin for machines that are late.
	ClientIdle = 3 * time.Second
	// ServerIdle leaves our own clients a margin that is wider.
	ServerIdle = 3 * ClientIdle
)
