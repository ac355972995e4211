package wire

import "time"

// How long a connection is kept on which nothing is asked. If a server closes one while a
// request is on its way, the request is lost, and nobody knows whether it was begun. So its
// client closes it first: whoever asks keeps it for ClientIdle at most, or OurIdle where the
// server is one of ours; our servers of HTTP keep it for ServerIdle at least, and those of gRPC
// close none for being idle.
const (
	// ClientIdle is less than the 5 s after which the servers of vLLM, SGLang and
	// TensorRT-LLM (uvicorn) and llama-server (cpp-httplib) close an idle connection, by a
	// margin for machines that are late.
	ClientIdle = 3 * time.Second
	// OurIdle is longer: to make a connection anew takes two programs' CPU for TLS, which busy
	// machines do not have in time.
	OurIdle = time.Minute
	// ServerIdle leaves the clients a margin.
	ServerIdle = 3 * OurIdle
)
