// Command protogen compiles the repository's .proto files and runs the Go
// plugins over them, without a system protoc.
//
// `make generate` calls it with the repository's root, the folder of
// protoc-gen-validate's sources (for validate/validate.proto) and the .proto
// files, all relative to the root. The plugins protoc-gen-go,
// protoc-gen-go-grpc and protoc-gen-validate must be in -plugins.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"millrace.dev/millrace/e2e/tools/output"
)

func main() {
	root := flag.String("root", ".", "the repository's root")
	pgv := flag.String("validate", "", "folder that holds validate/validate.proto")
	plugins := flag.String("plugins", "", "folder that holds the plugins")
	flag.Parse()
	if err := run(*root, *pgv, *plugins, flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "protogen: %v\n", err)
		os.Exit(1)
	}
}

func run(root, pgv, plugins string, files []string) error {
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root, pgv}}),
		// Comments become the generated code's comments.
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := compiler.Compile(context.Background(), files...)
	if err != nil {
		return err
	}
	req := &pluginpb.CodeGeneratorRequest{FileToGenerate: files}
	seen := map[string]bool{}
	for _, f := range compiled {
		addWithImports(req, seen, f)
	}
	for _, p := range []struct{ name, param string }{
		{"protoc-gen-go", "paths=source_relative"},
		{"protoc-gen-go-grpc", "paths=source_relative"},
		{"protoc-gen-validate", "paths=source_relative,lang=go"},
	} {
		req.Parameter = proto.String(p.param)
		if err := generate(filepath.Join(plugins, p.name), req, root); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// addWithImports appends f after everything that it imports, as plugins expect.
func addWithImports(req *pluginpb.CodeGeneratorRequest, seen map[string]bool, f protoreflect.FileDescriptor) {
	if seen[f.Path()] {
		return
	}
	seen[f.Path()] = true
	imports := f.Imports()
	for i := range imports.Len() {
		addWithImports(req, seen, imports.Get(i).FileDescriptor)
	}
	req.ProtoFile = append(req.ProtoFile, toProto(f))
}

func toProto(f protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	// protocompile keeps the parsed descriptor, source comments included.
	if r, ok := f.(interface {
		FileDescriptorProto() *descriptorpb.FileDescriptorProto
	}); ok {
		return r.FileDescriptorProto()
	}
	return protodesc.ToFileDescriptorProto(f)
}

// generate runs one plugin and writes the files that it answers.
func generate(plugin string, req *pluginpb.CodeGeneratorRequest, root string) error {
	in, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	cmd := exec.Command(plugin)
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &resp); err != nil {
		return err
	}
	if resp.Error != nil {
		return fmt.Errorf("%s", *resp.Error)
	}
	for _, f := range resp.File {
		path := filepath.Join(root, f.GetName())
		if err := output.Write(path, []byte(f.GetContent())); err != nil {
			return err
		}
	}
	return nil
}
