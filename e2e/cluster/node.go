package cluster

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"text/template"

	"golang.org/x/sys/unix"
)

// Node is a node of the cluster: a machine with containerd, kubelet and kube-proxy.
type Node struct {
	// Constant after newNode.
	c       *Cluster
	Name    string // as Kubernetes knows it
	IP      string
	Zone    string // its label topology.kubernetes.io/zone
	dir     string // its files; containerd's images are here and outlive its machine
	link    string // the control plane's end of the cable
	podCIDR string
	cgroup  string // below the root of every hierarchy

	m *machine // nil until make; replaced by Start
}

// diskSize is the size of a node's disk for Pods (emptyDirs, logs of kubelet), in
// bytes. It is memory, taken as it is used.
const diskSize = 2 << 30

// socket is where containerd listens, in the node's own /run.
const socket = "/run/containerd/containerd.sock"

//go:embed testdata/containerd.toml
var containerdConfig string

//go:embed testdata/kubelet.yaml
var kubeletConfig string

//go:embed testdata/proxy.yaml
var proxyConfig string

//go:embed testdata/cni.json
var cniConfig string

// newNode returns the i-th node, of which there is nothing yet.
func (c *Cluster) newNode(i int) *Node {
	id := strconv.Itoa(i + 1)
	return &Node{
		c: c, Name: "node" + id, IP: "192.0.2.1" + id, Zone: "zone" + id, dir: filepath.Join(c.dir, "node"+id),
		link: "node" + id, podCIDR: "198.18." + id + ".0/24",
		cgroup: filepath.Base(c.dir) + "-node" + id,
	}
}

// make makes the node's certificates and machine.
func (n *Node) make() error {
	c := n.c
	if err := os.MkdirAll(filepath.Join(n.dir, "containerd"), 0o755); err != nil {
		return err
	}
	user := pkix.Name{CommonName: "system:node:" + n.Name, Organization: []string{"system:nodes"}}
	if err := c.pki.issue(n.Name, user, n.Name, n.IP); err != nil {
		return err
	}
	if _, err := c.pki.connect(n.Name+".conf", n.Name, c.server); err != nil {
		return err
	}
	if err := makeCgroup(n.cgroup); err != nil {
		return err
	}
	return n.boot()
}

// boot makes the node's machine, cables it to the control plane's, and writes the
// files that its programs read.
func (n *Node) boot() error {
	m, err := newMachine(n.Name, n.c.program("pid1"), n.c.logs())
	if err != nil {
		return err
	}
	n.m = m
	control := n.c.control
	// A killed node's end of the cable goes some time after the node: here at once.
	_ = control.run("ip", "link", "del", n.link)
	// Entered by this machine's processes: to name the other end takes a process id
	// that both ends know.
	if err := n.c.host.run("nsenter", "-t", strconv.Itoa(control.init.PID()), "-n",
		"ip", "link", "add", n.link, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(m.init.PID())); err != nil {
		return err
	}
	if err := control.runAll(fmt.Sprintf(`
		ip link set %[1]s up
		ip route add %[2]s/32 dev %[1]s src %[3]s
	`, n.link, n.IP, controlIP)); err != nil {
		return err
	}
	if err := m.runAll(fmt.Sprintf(`
		ip link set lo up
		ip link set eth0 up
		ip addr add %[1]s/32 dev eth0
		ip route add %[2]s/32 dev eth0
		ip route add default via %[2]s dev eth0
		mkdir -p /run/containerd /run/cni/conf /run/kubelet /run/lock
		mount -t tmpfs -o size=%[3]d,mode=755 %[4]s /run/kubelet
	`, n.IP, controlIP, diskSize, n.cgroup)); err != nil {
		return err
	}
	if err := control.run("ip", "route", "add", n.podCIDR, "via", n.IP, "dev", n.link, "onlink", "src", controlIP); err != nil {
		return err
	}
	for name, text := range map[string]string{"containerd.toml": containerdConfig, "kubelet.yaml": kubeletConfig, "proxy.yaml": proxyConfig, "cni.json": cniConfig, "resolv.conf": ""} {
		if err := n.write(name, text); err != nil {
			return err
		}
	}
	return m.run("cp", filepath.Join(n.dir, "cni.json"), "/run/cni/conf/10-pods.conflist")
}

// write writes a file of the node, whose text is a template.
func (n *Node) write(name, text string) error {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, map[string]string{
		"Dir": n.dir, "Name": n.Name, "IP": n.IP, "PKI": n.c.pki.dir, "PodCIDR": n.podCIDR, "ClusterCIDR": podCIDR,
		"DNS": dnsIP, "Cgroup": n.cgroup, "Socket": socket, "Pause": pauseImage,
	}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir, name), b.Bytes(), 0o644)
}

// startContainerd starts containerd and gives it images.
func (n *Node) startContainerd(ctx context.Context, images []string) error {
	if err := n.m.start("containerd", "containerd", "-c", filepath.Join(n.dir, "containerd.toml")); err != nil {
		return err
	}
	if err := n.c.poll(ctx, n.Name+": containerd", func(context.Context) error {
		return n.m.run("ctr", "-a", socket, "version")
	}, n.m.process("containerd")); err != nil {
		return err
	}
	for _, path := range images {
		if err := n.Import(path); err != nil {
			return err
		}
	}
	return nil
}

// Import gives the node the images of an archive (docker or OCI).
func (n *Node) Import(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return n.m.run("ctr", "-a", socket, "-n", "k8s.io", "images", "import", path)
}

// startAgents starts kubelet and kube-proxy.
func (n *Node) startAgents() error {
	if err := n.StartKubelet(); err != nil {
		return err
	}
	return n.m.start("kube-proxy", n.c.program("programs"), "kube-proxy", "--config="+filepath.Join(n.dir, "proxy.yaml"))
}

// StartKubelet starts kubelet, also after StopKubelet.
func (n *Node) StartKubelet() error {
	return n.m.start("kubelet", n.c.program("programs"), "kubelet", "--config="+filepath.Join(n.dir, "kubelet.yaml"), "--kubeconfig="+n.c.pki.path(n.Name+".conf"),
		"--root-dir=/run/kubelet", "--node-ip="+n.IP, "--hostname-override="+n.Name, "--node-labels=topology.kubernetes.io/zone="+n.Zone)
}

// Command returns a command that runs on the node, in its network, as cluster-admin by
// KUBECONFIG. Its working folder is /, and it sees this machine's files.
func (n *Node) Command(name string, args ...string) (*exec.Cmd, error) {
	config, err := n.c.pki.connect("admin-"+n.Name+".conf", "admin", n.c.server)
	if err != nil {
		return nil, err
	}
	cmd := n.m.command(name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+config)
	return cmd, nil
}

// StopKubelet kills kubelet. Containers run on.
func (n *Node) StopKubelet() { n.m.stop("kubelet") }

// RestartContainerd kills containerd and starts it again. Containers run on.
func (n *Node) RestartContainerd(ctx context.Context) error {
	n.m.stop("containerd")
	return n.startContainerd(ctx, nil)
}

// Kill ends the node at once, as if its power was cut: every process of it. What
// was in its Pods' volumes is lost.
func (n *Node) Kill() { n.m.end() }

// Start boots a node that was killed.
func (n *Node) Start(ctx context.Context) error {
	if n.m.alive() {
		return fmt.Errorf("%s runs; Kill it first", n.Name)
	}
	if err := n.boot(); err != nil {
		return err
	}
	if err := n.startContainerd(ctx, nil); err != nil {
		return err
	}
	return n.startAgents()
}

// Cut takes the node's cable out: it reaches nobody, not the API server either. Mend
// puts it back.
func (n *Node) Cut() error { return n.c.control.run("ip", "link", "set", n.link, "down") }

// Mend ends what Cut and CutFrom did.
func (n *Node) Mend() error {
	if err := n.c.control.runAll(fmt.Sprintf(`
		ip link set %[1]s up
		ip route replace %[2]s/32 dev %[1]s src %[3]s
		ip route replace %[4]s via %[2]s dev %[1]s onlink src %[3]s
	`, n.link, n.IP, controlIP, n.podCIDR)); err != nil {
		return err
	}
	_ = n.c.control.run("nft", "delete", "table", "inet", "cut-"+n.Name) // there is none after Cut
	return nil
}

// CutFrom drops all packets between two nodes. Both still reach the API server.
func (n *Node) CutFrom(other *Node) error {
	table := "cut-" + n.Name
	return n.c.control.runAll(fmt.Sprintf(`
		nft add table inet %[1]s
		nft add chain inet %[1]s forward { type filter hook forward priority 0 ; }
		nft add rule inet %[1]s forward iifname %[2]s oifname %[3]s drop
		nft add rule inet %[1]s forward iifname %[3]s oifname %[2]s drop
	`, table, n.link, other.link))
}

// filler is the file that fills a node's disk.
const filler = "/run/kubelet/filler"

// FillDisk writes to the node's disk until nothing fits any more. FreeDisk ends that.
func (n *Node) FillDisk() error {
	f, err := os.OpenFile(n.m.path(filler), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
	}
	if cerr := f.Close(); !errors.Is(err, unix.ENOSPC) {
		return errors.Join(err, cerr)
	}
	return nil
}

// FreeDisk removes what FillDisk wrote.
func (n *Node) FreeDisk() error { return os.Remove(n.m.path(filler)) }

// Dial connects from the node's network, as a process on the node does.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.m.dial(ctx, network, address)
}

// WaitReady waits until Kubernetes calls the node Ready.
func (n *Node) WaitReady(ctx context.Context) error {
	return n.c.poll(ctx, n.Name, func(ctx context.Context) error {
		b, err := n.c.API(ctx, http.MethodGet, "/api/v1/nodes/"+n.Name, "", nil)
		if err != nil {
			return err
		}
		var node struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := json.Unmarshal(b, &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				return nil
			} else if c.Type == "Ready" {
				return fmt.Errorf("not ready: %s", c.Message)
			}
		}
		return errors.New("no condition Ready")
	}, n.m.process("kubelet"), n.m.process("containerd"))
}

// end ends the node for good.
func (n *Node) end() error {
	if n.m != nil {
		n.m.end()
	}
	return removeCgroup(n.cgroup)
}
