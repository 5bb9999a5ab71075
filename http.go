package baton

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/baton-cluster/baton/wire"
)

// Fault is one reason why a node cannot do its part, though it runs. Code names
// the kind: starting, stopped, disk_stalled, snapshot_failed, no_leader,
// not_committing, not_joined, no_lease, stalled, certificate_expired.
type Fault struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Faults says what keeps this node from doing its part, as of now; nothing if all
// is well. It asks no other node.
func (n *Node) Faults() []Fault {
	if f := n.Err(); f != nil {
		return []Fault{{"stopped", f.Error()}}
	}
	if n.ctx.Err() != nil {
		return []Fault{{"stopped", "the node is closing"}}
	}
	if !n.serves.Load() {
		return []Fault{{"starting", "the node has not found its cluster, or not registered yet"}}
	}
	var out []Fault
	for _, f := range n.cluster.Faults() {
		out = append(out, Fault(f))
	}
	if _, ok := n.leaseLeft(n.worker.Incarnation()); !ok {
		out = append(out, Fault{"no_lease", "the worker could not renew its lease with a majority of the servers: each of its reads waits for a majority of the voters to confirm it"})
	}
	if n.worker.Stalled() {
		out = append(out, Fault{"stalled", "nothing that the worker proposed comes back: its clients are sent elsewhere"})
	}
	return append(out, n.certFault()...)
}

// Limits of the HTTP port. Its readers are scrapers and probes: few, and near.
const (
	httpHeaderTime  = 5 * time.Second
	httpIdleTime    = time.Minute
	httpHeaderBytes = 16 << 10
)

// openHTTP serves health and figures from the first moment on: a node that does
// not find its cluster says so there.
func (n *Node) openHTTP(context.Context) error {
	if n.cfg.HTTPAddr == "" {
		return nil
	}
	l, err := n.cfg.Network.Listen(n.cfg.HTTPAddr)
	if err != nil {
		return wire.Errorf(wire.Code_UNAVAILABLE, "the HTTP port %s cannot be had: %v; stop what holds it or choose another --http", n.cfg.HTTPAddr, err)
	}
	n.httpAddr = l.Addr().String()
	n.http = &http.Server{
		Handler: n.HTTPHandler(), ReadHeaderTimeout: httpHeaderTime, IdleTimeout: httpIdleTime, MaxHeaderBytes: httpHeaderBytes,
	}
	n.spawn(func() {
		if err := n.http.Serve(l); !errors.Is(err, http.ErrServerClosed) && n.ctx.Err() == nil {
			n.cfg.Log.Warn("the HTTP port stopped", "err", err)
		}
	})
	return nil
}

// HTTPHandler serves /livez, /readyz and /metrics, /debug/pprof/ to callers at this
// machine's loopback address, and a list of them at /. It is what Config.HTTPAddr
// listens with.
//
// /readyz is 200 while the node can do its part, else 503 with the reasons; /livez
// is 503 only once the process ought to be started again. Both are JSON.
func (n *Node) HTTPHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answerHealth(w, n.Faults()) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		var dead []Fault
		for _, f := range n.Faults() {
			if f.Code == "stopped" {
				dead = append(dead, f)
			}
		}
		answerHealth(w, dead)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "/readyz\n/livez\n/metrics\n/debug/pprof/ (on the loopback address only)\n")
	})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&metrics{node: n}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	for path, fn := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/profile": pprof.Profile, "/debug/pprof/symbol": pprof.Symbol,
		"/debug/pprof/trace": pprof.Trace, "/debug/pprof/cmdline": pprof.Cmdline,
		"/debug/pprof/block": serveContention("block"), "/debug/pprof/mutex": serveContention("mutex"),
	} {
		mux.HandleFunc(path, nearby(fn))
	}
	return mux
}

// nearby refuses who does not call from a loopback address, to one: profiles show
// what clients sent.
func nearby(fn http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local == nil || !isLoopback(local.String()) || !isLoopback(r.RemoteAddr) {
			http.Error(w, "profiles are served on the loopback address only", http.StatusForbidden)
			return
		}
		fn(w, r)
	}
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

func answerHealth(w http.ResponseWriter, faults []Fault) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if len(faults) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if faults == nil {
		faults = []Fault{}
	}
	_ = json.NewEncoder(w).Encode(struct {
		OK      bool    `json:"ok"`
		Reasons []Fault `json:"reasons"`
	}{len(faults) == 0, faults}) // a caller that is gone is no fault
}

// HTTPAddr is the address of the HTTP port, empty if there is none.
func (n *Node) HTTPAddr() string { return n.httpAddr }
