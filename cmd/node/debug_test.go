package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDebugBundle: the archive has what it says of each node that answers, tells
// of one that does not, and holds no secret.
func TestDebugBundle(t *testing.T) {
	f := testCluster(t)
	env := map[string]string{"BATON_ADDR": strings.Join(f.mgmts(), ","), "BATON_PKI": f.pki}
	run := func(want int, args ...string) result {
		t.Helper()
		r := runBaton(env, "", args...)
		if r.code != want {
			t.Fatalf("baton %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
		}
		return r
	}
	secret := run(exitOK, "session", "open", "--id", "s1", "--json").fields(t)["secret"].(string)
	env["BATON_SECRET"] = secret
	run(exitOK, "session", "put", "s1", "k", "a value of a session")
	f.nodes[2].proc.kill()
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	out := run(exitOK, "debug", "bundle", path, "--json").fields(t)
	if nodes := out["nodes"].([]any); len(nodes) != 3 {
		t.Errorf("%v", nodes)
	}
	files := bundleFiles(t, path)
	for _, name := range []string{"status.json", "members.json", "jobs.json", "migrations.json", "failovers.json",
		"n1/log.txt", "n1/metrics.txt", "n1/goroutines.txt", "n1/heap.pb.gz", "n1/faults.json", "n2/log.txt", "n3/error.json"} {
		if len(files[name]) == 0 {
			t.Errorf("there is no %s", name)
		}
	}
	if !bytes.Contains(files["n1/log.txt"], []byte("registered")) || !bytes.Contains(files["n1/metrics.txt"], []byte("baton_")) {
		t.Errorf("log: %s\nmetrics: %.300s", files["n1/log.txt"], files["n1/metrics.txt"])
	}
	for name, data := range files {
		if bytes.Contains(data, []byte(secret)) || bytes.Contains(data, []byte("a value of a session")) || bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a secret", name)
		}
	}
	run(exitFailed, "debug", "bundle", path) // never over a file that is there
}

func bundleFiles(t *testing.T, path string) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	var names []string
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(files) {
		t.Errorf("a name comes twice: %v", names)
	}
	return files
}
