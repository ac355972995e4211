package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"crypto/x509"

	"millrace.dev/millrace/internal/proc"
)

// Addresses of the control plane's machine, which is also the router of the nodes,
// and what lies behind it. They are reserved for documentation and benchmarks.
const (
	controlIP  = "192.0.2.1"
	podCIDR    = "198.18.0.0/16"
	svcCIDR    = "198.19.0.0/16"
	apiIP      = "198.19.0.1"  // the Service of the API server
	dnsIP      = "198.19.0.10" // the Service of CoreDNS
	istiodIP   = "198.19.0.50" // the Service of istiod
	balancedIP = "198.19.255." // the addresses of Services of type LoadBalancer begin so
	issuer     = "https://kubernetes.default.svc.cluster.local"
)

// auditPolicy records every request once, when it was answered, without bodies.
const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}`

// makeControl makes the machine of the control plane and its certificates.
func (c *Cluster) makeControl(nodes int) error {
	if nodes == 0 {
		ports, err := proc.FreePorts(3)
		if err != nil {
			return err
		}
		at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
		c.control, c.server, c.etcd, c.peer = c.host, at(0), at(1), at(2)
	} else {
		var err error
		if c.control, err = newMachine("control", c.program("pid1"), c.logs()); err != nil {
			return err
		}
		c.server, c.etcd, c.peer = net.JoinHostPort(controlIP, "6443"), "127.0.0.1:2379", "127.0.0.1:2380"
		if err := c.control.run("ip", "link", "set", "lo", "up"); err != nil {
			return err
		}
		// The address is on lo: it is there whether or not nodes are.
		if err := c.control.run("ip", "addr", "add", controlIP+"/32", "dev", "lo"); err != nil {
			return err
		}
	}
	names := []string{"127.0.0.1", controlIP, apiIP, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if err := c.pki.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, names...); err != nil {
		return err
	}
	if err := c.pki.issue("apiserver-kubelet", pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}); err != nil {
		return err
	}
	for name, user := range map[string]string{"kcm": "system:kube-controller-manager", "scheduler": "system:kube-scheduler", "proxy": "system:kube-proxy"} {
		if _, err := c.pki.kubeconfig(name, c.server, pkix.Name{CommonName: user}); err != nil {
			return err
		}
	}
	if err := c.pki.issue("admin", pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}); err != nil {
		return err
	}
	return c.makeClient()
}

// makeClient makes the client of the API server and the configuration for kubectl,
// both by a forward on loopback where the server is in a network of its own.
func (c *Cluster) makeClient() error {
	local := c.server
	if c.control != c.host {
		var err error
		if local, err = c.forward("127.0.0.1:0", c.server, func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.control.dial(ctx, network, address)
		}); err != nil {
			return err
		}
	}
	var err error
	if c.kubeconfig, err = c.pki.connect("admin.conf", "admin", local); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(c.pki.path("admin.crt"), c.pki.path("admin.key"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.pki.cert)
	c.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: "kubernetes"},
		DialTLSContext:  nil,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, local)
		},
	}}
	return nil
}

// startControl starts the control plane and waits until the API server is ready.
func (c *Cluster) startControl(ctx context.Context, controllers bool) error {
	if err := os.WriteFile(filepath.Join(c.dir, "audit.json"), []byte(auditPolicy), 0o644); err != nil {
		return err
	}
	if err := c.StartAPI(ctx); err != nil {
		return err
	}
	if !controllers {
		return nil
	}
	return c.startControllers()
}

// StopAPI kills etcd and the API server.
func (c *Cluster) StopAPI() {
	c.control.stop("kube-apiserver")
	c.control.stop("etcd")
	c.client.CloseIdleConnections()
}

// StartAPI starts etcd, with the data that it had, and the API server, and waits
// until that is ready.
func (c *Cluster) StartAPI(ctx context.Context) error {
	if err := c.startEtcd(); err != nil {
		return err
	}
	if err := c.startAPIServer(); err != nil {
		return err
	}
	return c.poll(ctx, "API server", func(ctx context.Context) error {
		_, err := c.API(ctx, http.MethodGet, "/readyz", "", nil)
		return err
	}, c.control.process("etcd"), c.control.process("kube-apiserver"))
}

func (c *Cluster) startEtcd() error {
	return c.control.start("etcd", c.program("programs"), "etcd", "--name=e", "--data-dir="+filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://"+c.etcd, "--advertise-client-urls=http://"+c.etcd,
		"--listen-peer-urls=http://"+c.peer, "--initial-advertise-peer-urls=http://"+c.peer, "--initial-cluster=e=http://"+c.peer)
}

func (c *Cluster) startAPIServer() error {
	host, port, err := net.SplitHostPort(c.server)
	if err != nil {
		return err
	}
	bind := "0.0.0.0"
	if c.control == c.host {
		bind = host
	}
	p := c.pki.path
	return c.control.start("kube-apiserver", c.program("programs"), "kube-apiserver", "--etcd-servers=http://"+c.etcd,
		"--bind-address="+bind, "--advertise-address="+controlIP, "--secure-port="+port,
		"--tls-cert-file="+p("apiserver.crt"), "--tls-private-key-file="+p("apiserver.key"), "--client-ca-file="+p("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--service-cluster-ip-range="+svcCIDR,
		"--service-account-issuer="+issuer, "--service-account-key-file="+p("sa.pub"), "--service-account-signing-key-file="+p("sa.key"),
		"--kubelet-client-certificate="+p("apiserver-kubelet.crt"), "--kubelet-client-key="+p("apiserver-kubelet.key"), "--kubelet-certificate-authority="+p("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true", "--profiling=false",
		"--audit-policy-file="+filepath.Join(c.dir, "audit.json"), "--audit-log-path="+c.AuditLog(), "--audit-log-maxsize=0")
}

// startControllers starts what acts on the API server's objects.
func (c *Cluster) startControllers() error {
	conf := func(name string) []string {
		f := c.pki.path(name + ".conf")
		return []string{"--kubeconfig=" + f, "--authentication-kubeconfig=" + f, "--authorization-kubeconfig=" + f, "--bind-address=127.0.0.1", "--leader-elect=false"}
	}
	p := c.pki.path
	kcm := append([]string{"kube-controller-manager", "--use-service-account-credentials", "--service-account-private-key-file=" + p("sa.key"),
		"--root-ca-file=" + p("ca.crt"), "--cluster-signing-cert-file=" + p("ca.crt"), "--cluster-signing-key-file=" + p("ca.key")}, conf("kcm")...)
	if err := c.control.start("kube-controller-manager", c.program("programs"), kcm...); err != nil {
		return err
	}
	return c.control.start("kube-scheduler", c.program("programs"), append([]string{"kube-scheduler"}, conf("scheduler")...)...)
}

// pollEvery is how often a condition is checked.
const pollEvery = 50 * time.Millisecond

// poll checks cond until it returns nil. It gives up after readyLimit, or when one of
// the processes ends.
func (c *Cluster) poll(ctx context.Context, what string, cond func(context.Context) error, processes ...*proc.Process) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		for _, p := range processes {
			if !proc.Alive(p.PID()) {
				return fmt.Errorf("%s: process %d ended: %v", what, p.PID(), p.Err())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(pollEvery):
		}
	}
}
