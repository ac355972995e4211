// Command programs is what a cluster of the tests is made of, in one binary:
// etcd, Kubernetes, Istio's control plane, the inference extension's endpoint
// picker, CoreDNS, kubectl and helm. The name that it is called by, or the first
// argument, says which. One binary links their common half once: 250 MB in place
// of 750, and a third of the time.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	helm "helm.sh/helm/v4/pkg/cmd"
	pilot "istio.io/istio/pilot/cmd/pilot-discovery/app"
	ilog "istio.io/istio/pkg/log"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	sched "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	ctrl "sigs.k8s.io/controller-runtime"
	epp "sigs.k8s.io/gateway-api-inference-extension/cmd/epp/runner"
)

// programs are the programs by name. Each takes os.Args and returns its exit status.
var programs = map[string]func() int{
	"coredns":                 func() int { return status(dns(os.Args[1:])) },
	"epp":                     func() int { return status(epp.NewRunner().Run(ctrl.SetupSignalHandler())) },
	"etcd":                    func() int { etcdmain.Main(os.Args); return 0 },
	"helm":                    runHelm,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(kcm.NewControllerManagerCommand()) },
	"kube-proxy":              func() int { return cli.Run(proxy.NewProxyCommand()) },
	"kube-scheduler":          func() int { return cli.Run(sched.NewSchedulerCommand()) },
	"kubectl":                 func() int { return status(cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand())) },
	"kubelet":                 func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) },
	"pilot-discovery": func() int {
		ilog.EnableKlogWithCobra()
		return status(pilot.NewRootCommand().Execute())
	},
}

func main() {
	os.Args[0] = filepath.Base(os.Args[0])
	run, known := programs[os.Args[0]]
	if !known && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		run, known = programs[os.Args[0]]
	}
	if !known {
		fmt.Fprintf(os.Stderr, "programs: no %q here\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(run())
}

// runHelm runs helm, which prints its own error.
func runHelm() int {
	c, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err != nil {
		return status(err)
	}
	if c.Execute() != nil {
		return 1
	}
	return 0
}

// status prints an error and returns the exit status for it.
func status(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
