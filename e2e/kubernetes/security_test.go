//go:build kube

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"millrace.dev/millrace/e2e/rig"
	"millrace.dev/millrace/internal/identity"
	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/wire"
	"millrace.dev/millrace/xds/fleetpb"
)

// Of the installation that is attacked.
const (
	victim   = "security"
	intruder = "security-intruder" // another namespace, with accounts of the same names
)

// TestSecurity attacks an installation whose certificates live for a minute, while it is
// under load, and compares what its accounts may with what they do.
func TestSecurity(t *testing.T) {
	url := install(t, victim, "ca.life=1m")
	namespace(t, intruder)
	kubectl(t, "create", "serviceaccount", "millrace-engine", "-n", intruder)
	load := rig.StartLoad(t, url+rig.ChatPath, 2, rig.ShortQuestions)
	load.More(t, 4)
	t.Run("Pods that are not of the mesh get no certificate", strangePods)
	t.Run("tokens that are not of the mesh are good for nothing", tokens)
	t.Run("a certificate is good for its own node and role", certificates)
	t.Run("certificates follow each other", func(t *testing.T) { renewals(t, load) })
	t.Run("rights", func(t *testing.T) { rightsUsed(t, victim) })
	load.MustAllSucceed(t)
	t.Log(load)
}

// strangePod runs what each of our Pods runs beside its programs.
const strangePod = `apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: NAMESPACE}
spec:
  serviceAccountName: ACCOUNT
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
    - name: identity
      image: IMAGE
      args: [identity, -roles=engine, "-authority=https://millrace-xds-replicas.security.svc:7102", -ca=/etc/millrace/ca.crt, -out=/scratch/tls]
      volumeMounts: [{name: token, mountPath: /var/run/secrets/millrace}, {name: ca, mountPath: /etc/millrace}, {name: scratch, mountPath: /scratch}]
  volumes:
    - {name: token, projected: {sources: [{serviceAccountToken: {audience: millrace, path: token}}]}}
    - {name: ca, configMap: {name: stolen-ca}}
    - {name: scratch, emptyDir: {}}
`

// strangePods runs a Pod of another namespace with an account of the engine's name, and
// one of ours with another account.
func strangePods(t *testing.T) {
	image := kubectl(t, "get", "pods", "-n", victim, "-l", "app.kubernetes.io/component=engine",
		"-o", `jsonpath={.items[0].spec.initContainers[?(@.name=="identity")].image}`)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	rig.Write(t, ca, authority(t))
	for ns, account := range map[string]string{intruder: "millrace-engine", victim: "default"} {
		kubectl(t, "create", "configmap", "stolen-ca", "-n", ns, "--from-file=ca.crt="+ca)
		apply(t, strings.NewReplacer("NAMESPACE", ns, "ACCOUNT", account, "IMAGE", image).Replace(strangePod))
	}
	for ns, account := range map[string]string{intruder: "millrace-engine", victim: "default"} {
		want := "403 Forbidden: ServiceAccount " + ns + "/" + account + " has no role in this mesh"
		rig.Wait(t, time.Minute, want, func() error {
			out, err := kube.Kubectl(t.Context(), "logs", "stranger", "-n", ns)
			if err == nil && !strings.Contains(out, want) {
				err = errors.New(out)
			}
			return err
		})
	}
}

// authority returns the mesh's authorities in PEM, which are no secret.
func authority(t *testing.T) string {
	t.Helper()
	return kubectl(t, "get", "configmap", "millrace-ca", "-n", victim, "-o", `jsonpath={.data.ca\.crt}`)
}

// forward returns an address on this machine of a port of xds.
func forward(t *testing.T, port string) string {
	t.Helper()
	addr, err := kube.Forward("127.0.0.1:0", "millrace-xds-replicas."+victim+":"+port)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// token returns a token of an account of a namespace, bound to a Pod unless that is empty.
func token(t *testing.T, ns, account, pod, audience string) string {
	t.Helper()
	args := []string{"create", "token", account, "-n", ns, "--audience", audience}
	if pod != "" {
		args = append(args, "--bound-object-kind=Pod", "--bound-object-name="+pod)
	}
	return kubectl(t, args...)
}

// ask asks for certificates of roles with a token. It returns the folder with them, or
// why there are none.
func ask(t *testing.T, token string, roles ...mtls.Role) (string, error) {
	t.Helper()
	dir := t.TempDir()
	o := identity.Options{
		Roles: roles, Out: filepath.Join(dir, "tls"), Authority: "https://" + forward(t, "7102"),
		Token: filepath.Join(dir, "token"), CA: filepath.Join(dir, "ca.crt"),
	}
	rig.Write(t, o.Token, token)
	rig.Write(t, o.CA, authority(t))
	ctx, cancel := context.WithCancel(t.Context())
	log, done := &rig.Buffer{}, make(chan error, 1)
	go func() { done <- identity.Run(ctx, o, slog.New(slog.NewTextHandler(log, nil))) }()
	rig.Wait(t, time.Minute, "an answer of the authority", func() error {
		if out := log.String(); !strings.Contains(out, `err="40`) && !strings.Contains(out, "msg=certificate ") {
			return errors.New(out)
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Check(o, time.Now()); err != nil {
		return "", errors.New(log.String())
	}
	return o.Out, nil
}

// engine returns the name of an engine's Pod, and its node.
func engine(t *testing.T, i int) (pod, node string) {
	t.Helper()
	out := strings.Fields(kubectl(t, "get", "pods", "-n", victim, "-l", "app.kubernetes.io/component=engine",
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {end}`))
	return out[2*i], out[2*i+1]
}

// tokens shows the authority tokens that are good, but not for what is asked.
func tokens(t *testing.T) {
	pod, _ := engine(t, 0)
	tests := []struct {
		name, token string
		role        mtls.Role
		want        string
	}{
		{"of another namespace", token(t, intruder, "millrace-engine", "stranger", "millrace"), mtls.Engine, "has no role in this mesh"},
		{"of another account", token(t, victim, "default", "stranger", "millrace"), mtls.Engine, "has no role in this mesh"},
		{"of no Pod", token(t, victim, "millrace-engine", "", "millrace"), mtls.Engine, "is not a Pod's"},
		{"for the API server", token(t, victim, "millrace-engine", pod, "https://kubernetes.default.svc.cluster.local"), mtls.Engine, "401 Unauthorized"},
		{"of nobody", "a.b.c", mtls.Engine, "401 Unauthorized"},
		{"of an engine, as xds", token(t, victim, "millrace-engine", pod, "millrace"), mtls.XDS, "has not role"},
		{"of an engine, as a person", token(t, victim, "millrace-engine", pod, "millrace"), mtls.Operator, "has not role"},
	}
	for _, tt := range tests {
		if _, err := ask(t, tt.token, tt.role); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("a token %s: %v; want %s", tt.name, err, tt.want)
		}
	}
}

// report reports as a node with the identity of a connection.
func report(t *testing.T, conn *grpc.ClientConn, node string) error {
	s, err := fleetpb.NewFleetClient(conn).Report(t.Context())
	if err != nil {
		return err
	}
	_ = s.Send(&fleetpb.NodeReport{Node: node, Seq: 1, Sent: timestamppb.Now(), EngineError: "unreachable: gone"})
	_, err = s.Recv()
	return err
}

// subscribe subscribes to a type of resources.
func subscribe(t *testing.T, conn *grpc.ClientConn, typeURL string) error {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		return err
	}
	_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL})
	_, err = s.Recv()
	return err
}

// certificates tries xds without a certificate, with one of another authority, and with a
// nodeagent's, which was got by a stolen token.
func certificates(t *testing.T) {
	pod, node := engine(t, 0)
	_, other := engine(t, 1)
	dir, err := ask(t, token(t, victim, "millrace-engine", pod, "millrace"), mtls.NodeAgent)
	if err != nil {
		t.Fatal(err)
	}
	thief, err := mtls.Load(mtls.In(dir, mtls.ID{Role: mtls.NodeAgent}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if want := (mtls.ID{Domain: "millrace", Role: mtls.NodeAgent, Node: wire.NodeName(node)}); thief.ID() != want {
		t.Errorf("a token of a Pod on %s is good for %s", node, thief.ID())
	}
	own := foreign(t)
	addr := forward(t, "7100")
	for _, tt := range []struct {
		name     string
		security grpc.DialOption
		want     codes.Code
	}{
		{"plain text", (*mtls.Source)(nil).DialOption(nil), codes.Unavailable},
		{"another authority", own.DialOption(func(mtls.ID) error { return nil }), codes.Unavailable},
		{"a nodeagent of another node", thief.DialOption(mtls.Is(mtls.XDS)), codes.PermissionDenied},
	} {
		conn, err := grpc.NewClient("passthrough:///"+addr, tt.security)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for what, err := range map[string]error{
			"reports as a node":        report(t, conn, wire.NodeName(other)),
			"subscribes to policies":   subscribe(t, conn, wire.PolicyType),
			"subscribes to endpoints":  subscribe(t, conn, "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"),
			"subscribes to our states": subscribe(t, conn, wire.EndpointType),
		} {
			if status.Code(err) != tt.want {
				t.Errorf("%s %s: %v", tt.name, what, err)
			}
		}
	}
}

// foreign returns an identity of an authority that is not the mesh's, with the same names.
func foreign(t *testing.T) *mtls.Source {
	t.Helper()
	a, err := mtls.NewAuthority("millrace", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	text, err := a.Issue(mtls.ID{Role: mtls.Envoy}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f := mtls.In(t.TempDir(), mtls.ID{Role: mtls.Envoy})
	rig.Write(t, f.Cert, string(text))
	rig.Write(t, f.CA, authority(t)+string(a.PEM()))
	s, err := mtls.Load(f, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// renewals waits until each kind of Pod has got certificates several times, and serves on.
func renewals(t *testing.T, load *rig.Load) {
	for _, component := range []string{"engine", "extproc", "gateway"} {
		rig.Wait(t, 3*time.Minute, "the fourth certificate of "+component, func() error {
			out, err := kube.Kubectl(t.Context(), "logs", "-n", victim, "-l", "app.kubernetes.io/component="+component, "-c", "identity", "--tail=-1", "--max-log-requests=10")
			roles := map[string]int{"engine": 2}[component] // engine and nodeagent
			if n := strings.Count(out, "msg=certificate "); err == nil && n < 2*4*max(1, roles) {
				err = fmt.Errorf("%d certificates of two Pods", n)
			}
			return err
		})
	}
	load.More(t, 10)
}
