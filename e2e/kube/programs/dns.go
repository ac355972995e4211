package main

import (
	"errors"
	"log"
	"os"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/errors"     // plugins of the
	_ "github.com/coredns/coredns/plugin/health"     // server's file:
	_ "github.com/coredns/coredns/plugin/kubernetes" // each registers
	_ "github.com/coredns/coredns/plugin/ready"      // itself
)

// dns serves names of a cluster as the file says that is its one argument. It
// starts CoreDNS by its parts, as package coremain claims flags that Kubernetes
// has, too.
func dns(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: coredns COREFILE")
	}
	file, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	log.SetOutput(os.Stdout)
	dnsserver.Directives = []string{"errors", "health", "ready", "kubernetes"}
	caddy.Quiet = true
	caddy.TrapSignals()
	server, err := caddy.Start(caddy.CaddyfileInput{Filepath: args[0], Contents: file, ServerTypeName: "dns"})
	if err != nil {
		return err
	}
	server.Wait()
	return nil
}
