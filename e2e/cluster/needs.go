package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// packages are Debian's packages that a cluster with nodes needs, by a program of each.
var packages = map[string]string{
	"containerd":       "containerd",
	"runc":             "runc",
	"ip":               "iproute2",
	"nsenter":          "util-linux",
	"nft":              "nftables",
	"iptables":         "iptables",
	"conntrack":        "conntrack",
	"/usr/lib/cni/ptp": "containernetworking-plugins",
}

// needs returns what a cluster with nodes lacks on this machine, and how to get it.
func needs() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("nodes need root: they are namespaces, mounts and control groups; run it with sudo"))
	}
	var missing []string
	for program, pkg := range packages {
		if _, err := exec.LookPath(program); err != nil && !slices.Contains(missing, pkg) {
			missing = append(missing, pkg)
		}
	}
	if missing != nil {
		slices.Sort(missing)
		errs = append(errs, fmt.Errorf("programs of Debian are missing: apt-get install --no-install-recommends %s", strings.Join(missing, " ")))
	}
	return errors.Join(errs...)
}
