package main

import (
	"errors"
	"flag"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/engine/internal/backend"
	"millrace.dev/millrace/engine/internal/llamacpp"
	"millrace.dev/millrace/engine/internal/openai"
	"millrace.dev/millrace/engine/internal/vllm"
)

// kinds are the backends that this engine can run: the one place that lists them.
type kinds struct {
	llamacpp llamacpp.Programs
	vllm     vllm.Program
}

func (k *kinds) flags(fs *flag.FlagSet) {
	k.llamacpp.Flags(fs)
	k.vllm.Flags(fs)
}

// check says what keeps this node from running what its flags name.
func (k *kinds) check() error { return errors.Join(k.llamacpp.Check(), k.vllm.Check()) }

// states has backends save what their KV caches have in a folder.
func (k *kinds) states(folder string) { k.llamacpp.StateFolder = folder }

// open returns the kinds, whose processes listen at these addresses and are reached
// through t; ways leads to the shards of a replica, nil: straight.
func (k *kinds) open(shard, head string, ways func(*enginepb.Assignment) ([]string, error), t http.RoundTripper, reg prometheus.Registerer, log *slog.Logger) backend.Kinds {
	k.llamacpp.ShardAddress, k.llamacpp.BackendAddress, k.llamacpp.Ways = shard, head, ways
	k.vllm.Address = head
	return backend.Kinds{
		enginepb.Backend_LLAMACPP: llamacpp.New(k.llamacpp, t),
		enginepb.Backend_VLLM:     vllm.New(k.vllm, t, reg, log),
		enginepb.Backend_OPENAI:   openai.New(t),
	}
}
