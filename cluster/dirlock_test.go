package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// lockElsewhere is what this test binary does as a second process: its exit
// status tells whether it could lock dir.
func lockElsewhere(dir string) int {
	l, err := LockDir(dir)
	if err != nil {
		os.Stdout.WriteString(err.Error())
		return int(wire.CodeOf(err))
	}
	_ = l.Close()
	return 0
}

func TestSecondProcessOnOneDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	l, err := LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	second := func() (int, string) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BATON_TEST_LOCK_DIR="+dir)
		out, _ := cmd.Output()
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if code, out := second(); code != int(wire.Code_UNAVAILABLE) || !strings.Contains(out, dir) {
		t.Errorf("the second process ended with %d: %s", code, out)
	}
	if _, err := LockDir(dir); wire.CodeOf(err) != wire.Code_UNAVAILABLE {
		t.Errorf("a second lock in one process: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if code, out := second(); code != 0 {
		t.Errorf("after Close, the second process ended with %d: %s", code, out)
	}
}

func TestIdentity(t *testing.T) {
	l, err := LockDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := l.Identity(""); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("no name: %v", err)
	}
	id, err := l.Identity("n1")
	if err != nil || !idPattern.MatchString(id.ID) || id.Name != "n1" {
		t.Fatalf("%v %v", id, err)
	}
	if again, err := l.Identity("n1"); err != nil || again != id {
		t.Errorf("%v %v, want %v", again, err, id)
	}
	if _, err := l.Identity("n2"); wire.CodeOf(err) != wire.Code_NAME_IN_USE {
		t.Errorf("another name: %v", err)
	}
	for _, bad := range []string{"", "{}", `{"id":"../../etc","name":"n1"}`, "garbage"} {
		write(t, filepath.Join(l.Dir(), nodeFile), []byte(bad))
		if _, err := l.Identity("n1"); wire.CodeOf(err) != wire.Code_INTERNAL {
			t.Errorf("identity %q: %v", bad, err)
		}
	}
	if _, err := LockDir(""); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("no directory: %v", err)
	}
}
