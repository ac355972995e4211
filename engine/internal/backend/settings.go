package backend

import (
	"errors"
	"fmt"
	"strings"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/backends"
)

// fields are the names in the contract of what not every kind has.
var fields = map[backends.Field]string{
	backends.Kind: "backend.kind", backends.Weights: "backend.weights", backends.ContextTokens: "backend.context_tokens",
	backends.TensorParallel: "backend.tensor_parallel", backends.PipelineParallel: "backend.pipeline_parallel",
	backends.DataParallel: "backend.data_parallel", backends.Args: "backend.args", backends.URL: "backend.url",
	backends.ServedModel: "backend.served_model", backends.Stages: "stages",
}

// CheckSettings returns everything that a kind, by its name in the configuration,
// can't be asked for.
func CheckSettings(kind string, a *enginepb.Assignment) error {
	b := a.GetBackend()
	var faults []string
	for _, f := range backends.Check(backends.Settings{
		Kind: kind, Weights: b.GetWeights(), ContextTokens: int(b.GetContextTokens()),
		TensorParallel: int(b.GetTensorParallel()), PipelineParallel: int(b.GetPipelineParallel()), DataParallel: int(b.GetDataParallel()),
		Args: b.GetArgs(), URL: b.GetUrl(), ServedModel: b.GetServedModel(), Stages: len(a.GetStages()),
	}) {
		name := fields[f.Field]
		if f.Field == backends.Args && f.Index < len(b.GetArgs()) {
			name = fmt.Sprintf("%s[%d]", name, f.Index)
		}
		faults = append(faults, name+": "+f.Text)
	}
	if len(faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(faults, "; "))
}

// Degree returns a degree of parallelism, of which 0 is 1.
func Degree(n uint32) uint32 { return max(1, n) }
