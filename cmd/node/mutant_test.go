package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// edit takes a rule out of the source. old must stand in the file exactly once:
// where the source has moved on, the test fails instead of testing nothing.
type edit struct{ file, old, new string }

// buildMutant builds the product with edits, through an overlay: the source
// itself, and so the product, knows nothing of it.
func buildMutant(t *testing.T, name string, edits []edit) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for i, e := range edits {
		src := filepath.Join(root, e.file)
		from := src
		if changed, ok := replace[src]; ok {
			from = changed
		}
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), e.old); n != 1 {
			t.Fatalf("%s holds this %d times, want once; bring the mutant up to date:\n%s", e.file, n, e.old)
		}
		replace[src] = filepath.Join(dir, strconv.Itoa(i)+".go")
		if err := os.WriteFile(replace[src], []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-overlay", file, "-o", bin, "./cmd/node")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", name, err, out)
	}
	return bin
}

// mutantSeeds is how many demos a mutant gets to show itself in: the faults hit
// by chance.
const mutantSeeds = 3

// TestDemoFindsMutants: with one rule of exactly-once or of single ownership
// taken out of the nodes, the demo exits 5, and its counts say so. That the
// product itself passes is what the demo shows.
func TestDemoFindsMutants(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("builds and runs clusters; the processes are not under the race detector")
	}
	for _, m := range []struct {
		name  string
		edits []edit
	}{
		{"dedup", []edit{
			{"store/write.go", "if i, ok := w.findReply(seq); ok {", "if i, ok := w.findReply(seq); ok && seq == 0 {"},
			{"store/write.go", "case seq < w.ack || seq <= w.last:", "case false:"},
			{"store/write.go", "case prev != w.last:", "case false:"},
		}},
		{"stale-owner", []edit{
			{"store/session.go", "case r.epoch != epoch:", "case false:"},
			{"store/session.go", "case r.owner != ownerOf(o) || !s.valid(r.owner):", "case false:"},
			{"store/worker.go", "if !s.valid(ownerOf(c.GetOwner())) {", "if false {"},
			{"store/write.go", "case prev != w.last:", "case false:"},
		}},
	} {
		t.Run(m.name, func(t *testing.T) {
			bin := buildMutant(t, m.name, m.edits)
			for seed := 1; seed <= mutantSeeds; seed++ {
				r := runBaton(nil, "", "demo", "--json", "-q", "--baton", bin, "--seed", strconv.Itoa(seed),
					"--duration", "30s", "--rolling-restart=false", "--min-acked", "1000", "--min-pivots", "20")
				var d demoJSON
				if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
					t.Fatalf("exit code %d: %v: %s%s", r.code, err, r.stdout, r.stderr)
				}
				if d.OK != (r.code == exitOK) {
					t.Fatalf("exit code %d, ok is %v", r.code, d.OK)
				}
				// Refused: a client was told that another had displaced it.
				if r.code == exitViolation && d.Lost+d.Duplicated+d.DoubleOwned+d.StaleReads+d.Refused > 0 {
					t.Logf("seed %d: lost %d, duplicated %d, double owned %d, stale reads %d, refused %d: %v", seed, d.Lost, d.Duplicated, d.DoubleOwned, d.StaleReads, d.Refused, d.Violations[0])
					return
				}
				t.Logf("seed %d: exit code %d, nothing to see: %v", seed, r.code, d.Violations)
			}
			t.Errorf("the demo did not find %s", m.name)
		})
	}
}
