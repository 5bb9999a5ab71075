package baton

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// envWriteData names a kind of log store: then TestOpensFormerData first writes the
// data directory of today's format under testdata, where there is none of that name.
// A directory that is there is never written again: it is what a release wrote.
const envWriteData = "BATON_WRITE_DATA"

// Each archive holds a node's whole directory (log, vote, snapshots, identity,
// record, place), and the certificates that its keys are wrapped with. It was
// written by writeData, killed in mid-run.
const (
	formerData   = "testdata/node-*.tar.gz"
	formerID     = "kept"
	formerWrites = 200
	formerTime   = 2 * time.Minute
	// formerAddr is what the node is in raft's configuration with. Nobody dials it.
	formerAddr = "127.0.0.1:1"
)

var formerSecret = bytes.Repeat([]byte{7}, 32)

// TestOpensFormerData: a node starts on what every released format left, and has
// all of it.
func TestOpensFormerData(t *testing.T) {
	if kind := os.Getenv(envWriteData); kind != "" {
		writeData(t, kind)
	}
	archives, err := filepath.Glob(formerData)
	if err != nil || len(archives) < 2 {
		t.Fatalf("%d archives, want one for each log store at least: %v", len(archives), err)
	}
	for _, archive := range archives {
		t.Run(filepath.Base(archive), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			fatal(t, unpack(archive, dir))
			ctx, cancel := context.WithTimeout(context.Background(), formerTime)
			defer cancel()
			n, client := openFormer(t, ctx, dir, "")
			s, err := client.Resume(ctx, formerID, formerSecret)
			fatal(t, err)
			v, err := s.Get(ctx, "before the snapshot")
			fatal(t, err)
			if string(v.Value) != "there" {
				t.Errorf("a value of the snapshot is %q", v.Value)
			}
			sum, _, err := s.Incr(ctx, "n", 1)
			fatal(t, err)
			if sum != formerWrites+1 {
				t.Errorf("the counter went on to %d, from %d", sum, formerWrites)
			}
			var pushed []string
			got := make(chan struct{})
			s.OnPush(func(p Push) {
				pushed = append(pushed, string(p.Payload))
				close(got)
			})
			select {
			case <-got:
			case <-ctx.Done():
			}
			if len(pushed) != 1 || pushed[0] != "unread" {
				t.Errorf("pushes that nobody had read: %q", pushed)
			}
			if _, err := client.Resume(ctx, "closed", formerSecret); CodeOf(err) != ErrUnknownSession.Code && CodeOf(err) != ErrSessionClosed.Code {
				t.Errorf("a session that was closed: %v", err)
			}
			// The keys were rotated once: both generations open.
			if g := n.keys.ring.Load().Generation(); g < 2 {
				t.Errorf("the newest keys are of generation %d", g)
			}
		})
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openFormer opens the node of dir, alone, and a client.
func openFormer(t *testing.T, ctx context.Context, dir, kind string) (*Node, *Client) {
	t.Helper()
	cfg := Config{
		Name: "n1", Data: filepath.Join(dir, "n1"), PKI: filepath.Join(dir, "pki"), UserAddr: "127.0.0.1:0", MgmtAddr: "127.0.0.1:0",
		AdvertiseMgmt: formerAddr, Expect: 1, Profile: "local", LogStore: kind,
	}
	n, err := Open(ctx, cfg)
	fatal(t, err)
	t.Cleanup(func() { _ = n.Close() })
	client, err := Dial(ctx, ClientConfig{Addrs: []string{n.UserAddr()}, PKI: cfg.PKI})
	fatal(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return n, client
}

// writeData writes an archive. What it does to the node must cover what a data
// directory can hold.
func writeData(t *testing.T, kind string) {
	dir := t.TempDir()
	fatal(t, PKIInit(filepath.Join(dir, "pki")))
	fatal(t, PKIIssue(filepath.Join(dir, "pki"), "n1", []string{"127.0.0.1"}))
	ctx, cancel := context.WithTimeout(context.Background(), formerTime)
	defer cancel()
	n, client := openFormer(t, ctx, dir, kind)
	s, err := client.Open(ctx, OpenOptions{ID: formerID, Secret: formerSecret, TTL: 90 * 24 * time.Hour})
	fatal(t, err)
	s.OnPush(nil)
	_, err = s.Put(ctx, "before the snapshot", []byte("there"))
	fatal(t, err)
	closed, err := client.Open(ctx, OpenOptions{ID: "closed", Secret: formerSecret})
	fatal(t, err)
	fatal(t, closed.Close(ctx))
	admin, err := DialAdmin(ctx, AdminConfig{Addrs: []string{n.mgmt.Addr().String()}, PKI: filepath.Join(dir, "pki")})
	fatal(t, err)
	defer admin.Close()
	_, err = admin.RotateKeys(ctx, KeyRotation{})
	fatal(t, err)
	for i := range formerWrites {
		if i == formerWrites/2 {
			fatal(t, n.cluster.Snapshot())
		}
		_, _, err = s.Incr(ctx, "n", 1)
		fatal(t, err)
	}
	fatal(t, s.Detach(ctx))
	reader, err := client.Resume(ctx, formerID, formerSecret)
	fatal(t, err)
	_, err = reader.Push(ctx, []byte("unread")) // no OnPush: it stays
	fatal(t, err)
	_, err = os.Stat("testdata/node-1-" + kind + ".tar.gz")
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("there is one already: %v", err)
	}
	fatal(t, os.MkdirAll("testdata", 0o755))
	fatal(t, pack(dir, "testdata/node-1-"+kind+".tar.gz")) // while it runs, as a crash leaves it
}

func pack(dir, path string) error {
	var b bytes.Buffer
	zip, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	w := tar.NewWriter(zip)
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		err = w.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Mode: 0o600, Size: int64(len(body))})
		if err == nil {
			_, err = w.Write(body)
		}
		return err
	})
	if err := errors.Join(err, w.Close(), zip.Close()); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

func unpack(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		if !strings.HasPrefix(name, dir) {
			return errors.New("it leads out of the directory: " + h.Name)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
