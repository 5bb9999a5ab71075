package baton_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/cluster"
	"github.com/baton-cluster/baton/seam"
)

// hangingDisk is the product's, with a gate before each write to the vote's
// store, which an idle node is known to make.
type hangingDisk struct {
	cluster.FileDisk
	mu   sync.Mutex
	gate chan struct{} // not nil: writes wait until it is closed
}

func (d *hangingDisk) Open(dir string) (raft.LogStore, raft.StableStore, raft.SnapshotStore, io.Closer, error) {
	logs, stable, snaps, closer, err := d.FileDisk.Open(dir)
	return logs, hangingStable{stable, d}, snaps, closer, err
}

type hangingStable struct {
	raft.StableStore
	disk *hangingDisk
}

func (s hangingStable) SetUint64(key []byte, v uint64) error {
	s.disk.mu.Lock()
	gate := s.disk.gate
	s.disk.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return s.StableStore.SetUint64(key, v)
}

type healthAnswer struct {
	OK      bool          `json:"ok"`
	Reasons []baton.Fault `json:"reasons"`
}

func (h healthAnswer) has(code string) bool {
	for _, f := range h.Reasons {
		if f.Code == code {
			return true
		}
	}
	return false
}

// askHealth asks a node how it is. Status and body must agree.
func askHealth(t *testing.T, n *baton.Node, path string) (h healthAnswer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTPAddr()+path, nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	must(t, json.NewDecoder(resp.Body).Decode(&h))
	if h.OK != (resp.StatusCode == http.StatusOK) || h.OK != (len(h.Reasons) == 0) {
		t.Errorf("%s: %s, %+v", path, resp.Status, h)
	}
	return h
}

func awaitHealth(t *testing.T, n *baton.Node, what string, ok func(healthAnswer) bool) {
	t.Helper()
	ctx := testContext(t)
	var h healthAnswer
	for {
		if h = askHealth(t, n, "/readyz"); ok(h) {
			return
		}
		if seam.Sleep(ctx, seam.OSClock{}, 10*time.Millisecond) != nil {
			t.Fatalf("%s is never %s: %+v", n.Name(), what, h)
		}
	}
}

func well(h healthAnswer) bool { return h.OK }

// TestReadyzTurnsRedWhenItsDiskHangs: the node says so though it runs, status
// says so too, and both say that it is over.
func TestReadyzTurnsRedWhenItsDiskHangs(t *testing.T) {
	disks := make([]*hangingDisk, 3)
	c := startClusterWith(t, func(i int, cfg *baton.Config) {
		disks[i] = &hangingDisk{}
		cfg.Disk, cfg.HTTPAddr = disks[i], "127.0.0.1:0"
		cfg.Profile = "wan" // a node stops only after twenty seconds
	})
	for _, n := range c.nodes {
		awaitHealth(t, n, "well", well)
		if h := askHealth(t, n, "/livez"); !h.OK {
			t.Errorf("%s: %+v", n.Name(), h)
		}
	}
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	set := func(gate chan struct{}) {
		disks[0].mu.Lock()
		disks[0].gate = gate
		disks[0].mu.Unlock()
	}
	set(gate)
	awaitHealth(t, c.nodes[0], "known to hang", func(h healthAnswer) bool { return h.has("disk_stalled") })
	ctx := testContext(t)
	status := func(what string, ok func(baton.Status) bool) {
		t.Helper()
		for {
			st, err := c.admin().Status(ctx)
			if err == nil && ok(st) {
				return
			}
			if seam.Sleep(ctx, seam.OSClock{}, 10*time.Millisecond) != nil {
				t.Fatalf("status is never %s: %+v", what, st)
			}
		}
	}
	status("red", func(st baton.Status) bool { return !st.Healthy && st.FailureTolerance == 0 })
	set(nil)
	release()
	for _, n := range c.nodes {
		awaitHealth(t, n, "well again", well)
	}
	status("green", func(st baton.Status) bool { return st.Healthy && st.FailureTolerance == 1 })
}

// TestReadyzTurnsRedWithoutQuorum: of three nodes two are gone. The third runs,
// cannot commit, cannot renew, and says both.
func TestReadyzTurnsRedWithoutQuorum(t *testing.T) {
	c := startClusterWith(t, func(_ int, cfg *baton.Config) { cfg.HTTPAddr = "127.0.0.1:0" })
	awaitHealth(t, c.nodes[0], "well", well)
	must(t, c.nodes[1].Close())
	must(t, c.nodes[2].Close())
	awaitHealth(t, c.nodes[0], "red", func(h healthAnswer) bool { return h.has("no_leader") && h.has("no_lease") })
	if h := askHealth(t, c.nodes[0], "/livez"); !h.OK {
		t.Errorf("starting it again would not help: %+v", h)
	}
	must(t, c.open(1))
	awaitHealth(t, c.nodes[0], "well again", well)
}

// TestMetricsAndProfiles: figures in Prometheus' format, profiles on loopback.
func TestMetricsAndProfiles(t *testing.T) {
	c := startClusterWith(t, func(_ int, cfg *baton.Config) { cfg.HTTPAddr = "127.0.0.1:0" })
	awaitHealth(t, c.nodes[0], "well", well)
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + c.nodes[0].HTTPAddr() + path)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(body)
	}
	var code int
	var body string
	eventually(t, "a page that says that the node is ready", func() bool { // it need not stay so
		code, body = get("/metrics")
		return strings.Contains(body, "baton_ready 1\n")
	})
	for _, want := range []string{"baton_raft_term ", "baton_log_writes_total ", "baton_lease_left_seconds ", "go_goroutines "} {
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d, without %q:\n%s", code, want, body)
		}
	}
	if code, _ := get("/debug/pprof/goroutine?debug=1"); code != http.StatusOK {
		t.Errorf("profiles: %d", code)
	}
	if code, _ := get("/debug/pprof/block"); code != http.StatusBadRequest {
		t.Errorf("waits without a time: %d", code)
	}
	if code, body := get("/"); code != http.StatusOK || !strings.Contains(body, "/readyz") {
		t.Errorf("the list of what there is: %d %s", code, body)
	}
	if code, _ := get("/nothing"); code != http.StatusNotFound {
		t.Errorf("nothing is there: %d", code)
	}
}

// TestStartingNodeIsNotReady: a node that waits for its cluster says so.
func TestStartingNodeIsNotReady(t *testing.T) {
	dir := t.TempDir()
	pki := filepath.Join(dir, "pki")
	must(t, baton.PKIInit(pki))
	must(t, baton.PKIIssue(pki, "n1", []string{"127.0.0.1"}))
	addr, done := freeAddr(t), make(chan struct{})
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		defer close(done)
		if n, err := baton.Open(ctx, baton.Config{
			Name: "n1", Data: filepath.Join(dir, "n1"), PKI: pki, UserAddr: freeAddr(t), MgmtAddr: freeAddr(t),
			Join: []string{freeAddr(t)}, Expect: 2, Profile: "local", HTTPAddr: addr,
		}); err == nil {
			_ = n.Close()
			t.Error("it formed a cluster by itself")
		}
	}()
	for ctx.Err() == nil {
		resp, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			continue // not bound yet
		}
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), `"starting"`) {
			t.Errorf("%s: %s", resp.Status, body)
		}
		break
	}
	cancel()
	<-done
}
