package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Dial connects to an address as a process on the first node that runs does: to Pods,
// Services and load balancers. Names are those of DNS in the cluster, from the front:
// service.namespace will do. It is of the type that http.Transport wants.
func (c *Cluster) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	for _, n := range c.nodes {
		if !n.m.alive() {
			continue
		}
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		ip, err := n.resolve(ctx, host)
		if err != nil {
			return nil, err
		}
		return n.Dial(ctx, network, net.JoinHostPort(ip, port))
	}
	return nil, errors.New("no node runs")
}

// domain is what names of Services end in.
const domain = "cluster.local"

// resolve returns an address of a host that is an address, or a name of the cluster.
func (n *Node) resolve(ctx context.Context, host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	if !strings.HasSuffix(host, "."+domain) {
		host = strings.TrimSuffix(host, ".svc") + ".svc." + domain
	}
	dns := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return n.Dial(ctx, network, net.JoinHostPort(dnsIP, "53"))
	}}
	ips, err := dns.LookupHost(ctx, host+".")
	if err != nil {
		return "", err
	}
	return ips[0], nil
}

// HTTP returns a client whose requests start on the first node that runs.
func (c *Cluster) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: c.Dial, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second}}
}

// Forward listens on a loopback address of this machine, such as 127.0.0.1:0, and
// connects whoever comes to a target in the cluster, as Dial does, until Down. It
// returns the address.
func (c *Cluster) Forward(local, target string) (string, error) {
	return c.forward(local, target, c.Dial)
}

func (c *Cluster) forward(local, target string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (string, error) {
	ln, err := net.Listen("tcp", local)
	if err != nil {
		return "", err
	}
	context.AfterFunc(c.closing, func() { _ = ln.Close() })
	c.forwards.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			c.forwards.Go(func() {
				defer func() { _ = in.Close() }()
				out, err := dial(c.closing, "tcp", target)
				if err != nil {
					return
				}
				defer func() { _ = out.Close() }()
				stop := context.AfterFunc(c.closing, func() { _, _ = in.Close(), out.Close() })
				defer stop()
				splice(in, out)
			})
		}
	})
	return ln.Addr().String(), nil
}

// splice copies both ways until both ends have sent all.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, err := io.Copy(way[0], way[1]); err != nil {
				_, _ = a.Close(), b.Close()
				return
			}
			if half, ok := way[0].(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

// API sends a request to the API server as admin and returns the answer's body. A
// status of 300 or more is an error that holds it.
func (c *Cluster) API(ctx context.Context, method, path, contentType string, body io.Reader) ([]byte, error) {
	resp, err := c.request(ctx, method, path, contentType, body)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return b, err
}

func (c *Cluster) request(ctx context.Context, method, path, contentType string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://kubernetes"+path, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return c.client.Do(req)
}
