package cluster

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/baton-cluster/baton/wire"
)

func TestLogStoreChoice(t *testing.T) {
	open := func(dir string, s LogStore) error {
		_, _, _, closer, err := FileDisk{s}.Open(dir)
		if err == nil {
			err = closer.Close()
		}
		return err
	}
	held := func(dir string) LogStore {
		h, err := heldLogStore(dir)
		must(t, err)
		return h
	}
	for _, c := range []struct{ made, want LogStore }{
		{LogStoreAuto, LogStoreWAL}, {LogStoreWAL, LogStoreWAL}, {LogStoreBolt, LogStoreBolt},
	} {
		dir := t.TempDir()
		for _, s := range []LogStore{c.made, LogStoreAuto, c.want} {
			must(t, open(dir, s))
			if h := held(dir); h != c.want {
				t.Errorf("made with %q: holds %q", c.made, h)
			}
		}
		other := LogStoreBolt
		if c.want == LogStoreBolt {
			other = LogStoreWAL
		}
		if err := open(dir, other); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("%q where %q is: %v", other, c.want, err)
		}
		if h := held(dir); h != c.want {
			t.Errorf("the refusal left %q", h)
		}
	}
	dir := t.TempDir()
	if err := open(dir, "paper"); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("%v", err)
	}
	must(t, open(dir, LogStoreBolt))
	must(t, os.Mkdir(filepath.Join(dir, walDir), 0o700))
	if err := open(dir, LogStoreAuto); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("two logs: %v", err)
	}
}

// keptEntries are in each kept directory, with term 9 in the stable store.
const keptEntries = 40

// TestKeptDirectories opens directories that earlier versions wrote. Nobody may
// write a file here again, only add one: BATON_KEEP=name makes them.
func TestKeptDirectories(t *testing.T) {
	for _, c := range []struct {
		file string
		make Disk
	}{{"bolt-1", BoltDisk{}}, {"wal-1", WALDisk{SegmentBytes: testSegment}}} {
		t.Run(c.file, func(t *testing.T) {
			path := filepath.Join("testdata", c.file+".tar.gz")
			if os.Getenv("BATON_KEEP") == c.file {
				keep(t, c.make, path)
			}
			dir := unpack(t, path)
			logs, stable, _, closer, err := FileDisk{}.Open(dir)
			must(t, err)
			defer func() { must(t, closer.Close()) }()
			if first, last := span(t, logs); first != 5 || last != keptEntries {
				t.Errorf("it holds %d to %d", first, last)
			}
			for i := uint64(5); i <= keptEntries; i++ {
				must(t, sameEntry(logs, i))
			}
			if term, err := stable.GetUint64([]byte("CurrentTerm")); term != 9 || err != nil {
				t.Errorf("term %d %v", term, err)
			}
			must(t, logs.StoreLog(testEntry(keptEntries+1)))
		})
	}
}

func keep(t *testing.T, d Disk, path string) {
	dir := t.TempDir()
	logs, stable, _, closer, err := d.Open(dir)
	must(t, err)
	must(t, stable.SetUint64([]byte("CurrentTerm"), 9))
	for i := uint64(1); i <= keptEntries; i++ {
		must(t, logs.StoreLog(testEntry(i)))
	}
	must(t, logs.DeleteRange(1, 4))
	must(t, closer.Close())
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, w.Close())
	must(t, z.Close())
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, b.Bytes(), 0o644))
}

func unpack(t *testing.T, path string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	f, err := os.Open(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	must(t, err)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		must(t, err)
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			must(t, os.MkdirAll(to, 0o700))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(to), 0o700))
		data, err := io.ReadAll(r)
		must(t, err)
		must(t, os.WriteFile(to, data, 0o600))
	}
}

// TestMixedLogStores: one cluster may hold both kinds; each takes a snapshot from
// another node when its log is too old, and a restart after that.
func TestMixedLogStores(t *testing.T) {
	stores := []LogStore{LogStoreBolt, LogStoreWAL, LogStoreWAL}
	nodes := make([]*testNode, 3)
	var addrs []string
	for i := range nodes {
		nodes[i] = newTestNode(t, fmt.Sprintf("n%d", i+1))
		nodes[i].edit = func(c *Config) { c.Disk = FileDisk{stores[i]} }
		addrs = append(addrs, nodes[i].addr)
	}
	for _, n := range nodes {
		n.mustOpen(3, addrs...)
	}
	t.Cleanup(func() { closeAll(nodes) })
	waitReady(t, nodes...)
	w := register(t, nodes[0], "worker")
	epoch := w.session(t, nodes[0], "s")
	seq := uint64(0)
	write := func(n *testNode) {
		for range 20 {
			seq++
			if res, err := n.c.ProposeWait(testCtx(t), w.write("s", epoch, seq)); err != nil || res[0].GetCode() != wire.Code_OK {
				t.Fatalf("%v %v", res, err)
			}
		}
	}
	for i, away := range nodes {
		others := []*testNode{nodes[(i+1)%3], nodes[(i+2)%3]}
		write(others[0])
		away.close()
		waitReady(t, others...)
		write(others[0])
		for _, n := range others {
			must(t, n.c.Snapshot())
			// As after a long time: what the absent node needs is gone from the log.
			last, err := n.c.log.LastIndex()
			must(t, err)
			must(t, n.c.log.DeleteRange(1, last-1))
		}
		for range 2 {
			away.mustOpen(3, addrs...)
			waitReady(t, nodes...)
			write(others[0])
			sameState(t, nodes)
			away.close()
		}
		away.mustOpen(3, addrs...)
		waitReady(t, nodes...)
	}
}

// TestBridgeGap: the log of a node that crashed between a snapshot and the
// removal of what it replaces must take the entry that follows the snapshot.
func TestBridgeGap(t *testing.T) {
	l := mustWAL(t, t.TempDir())
	defer func() { must(t, l.Close()) }()
	for i := uint64(1); i <= 10; i++ {
		must(t, l.StoreLog(testEntry(i)))
	}
	must(t, bridgeGap(l, 10)) // there is no gap
	if _, last := span(t, l); last != 10 {
		t.Errorf("the log ends at %d", last)
	}
	if err := l.StoreLog(testEntry(21)); err == nil {
		t.Error("the store took a gap")
	}
	must(t, bridgeGap(l, 20))
	must(t, l.StoreLog(testEntry(21)))
	must(t, sameEntry(l, 21))
	must(t, bridgeGap(raft.NewInmemStore(), 20))
}
