package mutants

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUpToDate: every mutant still finds its text. (That each is caught is TestCaught.)
func TestUpToDate(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	sim, err := os.ReadFile(filepath.Join(root, "test/sim/nemesis_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	storms := string(sim)
	for _, m := range All {
		path, err := m.Overlay(root, t.TempDir())
		if err != nil {
			t.Error(err)
			continue
		}
		var overlay struct{ Replace map[string]string }
		b, _ := os.ReadFile(path)
		if err := json.Unmarshal(b, &overlay); err != nil || len(overlay.Replace) == 0 {
			t.Errorf("%s: %v, %s", m.Name, err, b)
		}
		for src, out := range overlay.Replace {
			a, errA := os.ReadFile(src)
			b, errB := os.ReadFile(out)
			if errA != nil || errB != nil || string(a) == string(b) {
				t.Errorf("%s changes nothing in %s: %v %v", m.Name, src, errA, errB)
			}
		}
		if m.Tests != "" && !declared(t, filepath.Join(root, m.Package), m.Tests) {
			t.Errorf("%s: package %s has no %s", m.Name, m.Package, m.Tests)
		}
		for f := range strings.SplitSeq(m.Storm, ",") {
			if m.Storm != "" && !strings.Contains(storms, "\n\t{\""+f+"\", func(") {
				t.Errorf("%s: the simulation has no fault %q", m.Name, f)
			}
		}
		if got, ok := Find(m.Name); !ok || got.Fault != m.Fault {
			t.Errorf("%s is not found by name", m.Name)
		}
	}
}

// declared reports whether the tests of a package have a function of that name.
func declared(t *testing.T, dir, test string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(src), "\nfunc "+test+"(") {
			return true
		}
	}
	return false
}

// TestInVirtualTime: the product's own tests see the mutants that say so.
func TestInVirtualTime(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the product's tests anew for each mutant")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range All {
		if m.Tests == "" || m.Package == "test/sim" { // whole nodes take long to build: make mutants
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			overlay, err := m.Overlay(root, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", "test", "-count=1", "-overlay", overlay, "-run", "^"+m.Tests+"$", "./"+m.Package)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "GOWORK=off")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: "+m.Tests) {
				t.Errorf("survives %s: %v\n%s", m.Tests, err, out)
			}
		})
	}
}

func TestOverlayFailsLoudly(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.go"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, e := range []Edit{{"a.go", "three", ""}, {"a.go", "two", ""}, {"b.go", "one", ""}} {
		if _, err := (Mutant{Name: "m", Edits: []Edit{e}}).Overlay(root, root); err == nil || !strings.Contains(err.Error(), "mutant m") {
			t.Errorf("%v: %v", e, err)
		}
	}
	if _, err := (Mutant{Name: "m", Edits: []Edit{{"a.go", "one", "1"}}}).Overlay(root, root); err != nil {
		t.Error(err)
	}
}
