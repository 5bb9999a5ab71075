package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
)

// TestPlaceTellsACopy: the place of a directory is the same for each process that
// uses it, and another one for a copy.
func TestPlaceTellsACopy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	use := func(dir string) (*DirLock, bool) {
		t.Helper()
		l, err := LockDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		copied, err := l.Copied()
		if err != nil {
			t.Fatal(err)
		}
		return l, copied
	}
	first, copied := use(dir)
	if copied {
		t.Error("a new directory is a copy")
	}
	if err := first.Settle(); err != nil {
		t.Fatal(err)
	}
	before, err := first.Place()
	if err != nil {
		t.Fatal(err)
	}
	other := dir + "-copy"
	if out, err := exec.Command("cp", "-a", dir, other).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Place(); err == nil {
		t.Error("a closed lock has a place")
	}
	second, copied := use(dir)
	again, err := second.Place()
	if err != nil || copied || !proto.Equal(before, again) {
		t.Errorf("the same directory: copied %v, %v, want %v (%v)", copied, again, before, err)
	}
	third, copied := use(other)
	there, err := third.Place()
	if err != nil || !copied || proto.Equal(before, there) {
		t.Errorf("the copy: copied %v, %v (%v)", copied, there, err)
	}
	if err := third.Settle(); err != nil {
		t.Fatal(err)
	}
	if copied, err := third.Copied(); err != nil || copied {
		t.Errorf("settled, it is a copy still: %v", err)
	}
	if err := os.WriteFile(filepath.Join(other, placeFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := third.Copied(); err == nil {
		t.Error("an unreadable place is taken")
	}
}
