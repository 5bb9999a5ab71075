package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-cluster/baton"
)

func (p *program) debugCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "debug",
		Short:   "What somebody who looks for a fault asks for",
		Example: "  baton debug bundle",
		Args:    cobra.ArbitraryArgs,
		RunE:    needSubcommand,
	}
	cmd.AddCommand(p.debugBundleCmd())
	return cmd
}

// bundleJSON tells what a bundle holds.
type bundleJSON struct {
	File  string       `json:"file"`
	Nodes []bundleNode `json:"nodes"`
}

type bundleNode struct {
	Node  string `json:"node"`
	Error string `json:"error,omitempty"` // why there is nothing of it
}

func (p *program) debugBundleCmd() *cobra.Command {
	var r reach
	cmd := &cobra.Command{
		Use:   "bundle [FILE]",
		Short: "Collect logs, metrics, state and profiles of all nodes in one archive",
		Long: "Writes a .tar.gz (default: baton-debug-TIME.tar.gz) with the status, members, jobs, migrations and\n" +
			"failovers of the cluster, and of each node the last lines of its log, metrics, goroutines and heap.\n" +
			"Keys, secrets and the sessions' state are not in it; names of nodes and ids of sessions are.",
		Example: "  baton debug bundle incident.tar.gz",
		Args:    cobra.MaximumNArgs(1),
	}
	r.flags(cmd)
	cmd.RunE = p.run(func(ctx context.Context, args []string) error {
		path := "baton-debug-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
		if len(args) > 0 {
			path = args[0]
		}
		return r.ask(ctx, func(ctx context.Context, a *baton.Admin) error {
			out, err := r.bundle(ctx, a, path)
			if err != nil {
				return err
			}
			p.print(out, func(w io.Writer) {
				fmt.Fprintln(w, out.File)
				for _, n := range out.Nodes {
					if n.Error != "" {
						fmt.Fprintf(w, "without %s: %s\n", n.Node, n.Error)
					}
				}
			})
			return nil
		})
	})
	return cmd
}

// archive writes files into a .tar.gz.
type archive struct {
	tar *tar.Writer
	now time.Time
}

func (a archive) add(name string, data []byte) error {
	err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: a.now})
	if err == nil {
		_, err = a.tar.Write(data)
	}
	return err
}

// addJSON adds what was asked for, or why it could not be had.
func (a archive) addJSON(name string, v any, failed error) error {
	if failed != nil {
		v = map[string]string{"error": failed.Error()}
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return a.add(name+".json", data)
}

func (r *reach) bundle(ctx context.Context, a *baton.Admin, path string) (out bundleJSON, err error) {
	st, err := a.Status(ctx)
	if err != nil {
		return out, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return out, localError{err}
	}
	zip := gzip.NewWriter(f)
	to := archive{tar.NewWriter(zip), time.Now()}
	out = bundleJSON{File: path, Nodes: []bundleNode{}}
	err = bundleCluster(ctx, a, st, to)
	for _, n := range st.Nodes {
		if err != nil {
			break
		}
		one := bundleNode{Node: n.Name}
		d, failed := r.debugOf(ctx, n)
		if failed != nil {
			one.Error = failed.Error()
		}
		out.Nodes = append(out.Nodes, one)
		err = bundleNodeFiles(to, n.Name, d, failed)
	}
	for _, end := range []func() error{to.tar.Close, zip.Close, f.Close} {
		if e := end(); err == nil {
			err = e
		}
	}
	if err != nil {
		_ = os.Remove(path)
		return out, localError{err}
	}
	return out, nil
}

// bundleJobs is how many of the latest jobs a bundle has.
const bundleJobs = 100

func bundleCluster(ctx context.Context, a *baton.Admin, st baton.Status, to archive) error {
	err := to.addJSON("status", st, nil)
	for _, part := range []struct {
		name string
		get  func() (any, error)
	}{
		{"members", func() (any, error) { return a.Members(ctx) }},
		{"jobs", func() (any, error) { return a.Jobs(ctx, bundleJobs) }},
		{"migrations", func() (any, error) { return a.Migrations(ctx, 0) }},
		{"failovers", func() (any, error) { return a.Failovers(ctx) }},
	} {
		if err == nil {
			v, failed := part.get()
			err = to.addJSON(part.name, v, failed)
		}
	}
	return err
}

// debugOf asks one node at its own address.
func (r *reach) debugOf(ctx context.Context, n baton.NodeStatus) (d baton.NodeDebug, err error) {
	a, err := baton.DialAdmin(ctx, baton.AdminConfig{
		Addrs: []string{net.JoinHostPort(n.Endpoint.Host, strconv.Itoa(n.Endpoint.MgmtPort))}, PKI: r.pki,
	})
	if err != nil {
		return d, err
	}
	defer func() { _ = a.Close() }()
	return a.Debug(ctx)
}

func bundleNodeFiles(to archive, node string, d baton.NodeDebug, failed error) error {
	if failed != nil {
		return to.addJSON(node+"/error", nil, failed)
	}
	err := to.addJSON(node+"/faults", d.Faults, nil)
	for _, file := range []struct {
		name string
		data []byte
	}{{"log.txt", []byte(d.Log)}, {"metrics.txt", []byte(d.Metrics)}, {"goroutines.txt", []byte(d.Goroutines)}, {"heap.pb.gz", d.Heap}} {
		if err == nil {
			err = to.add(node+"/"+file.name, file.data)
		}
	}
	return err
}
