package mutants

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Environment of a run; see the Makefile's mutants.
const (
	// envRun is "1" to try the mutants at all, for it takes minutes, or a list of
	// names.
	envRun = "BATON_MUTANTS"
	// envAll: every layer is tried, not only those up to the first that sees it.
	envAll = "BATON_MUTANTS_ALL"
	// envLayers names the layers to be tried, by commas; all if empty.
	envLayers = "BATON_MUTANTS_LAYERS"
)

// layer is one way to notice a mutant.
type layer struct {
	name string
	args func(m Mutant) []string // of go test; nil: it is not for this mutant
	env  []string
}

// Seeds and hours are what each grade of the simulation gets to see a mutant in.
const (
	lightSeeds = "1-4"
	lightHours = "0.3"
	wholeSeeds = "1-4"
	wholeHours = "0.1"
)

// layers, the cheapest first.
var layers = []layer{
	{name: "unit", args: func(m Mutant) []string {
		if m.Package == "" {
			return nil
		}
		if m.Package == "test/sim" {
			return []string{"-run", "^" + m.Tests + "$", "./" + m.Package}
		}
		return []string{"./" + m.Package}
	}},
	{name: "explore", args: func(Mutant) []string { return []string{"./test/explore"} }},
	{name: "matrix", args: func(Mutant) []string { return []string{"./test/matrix"} }},
	{name: "light", args: sim, env: []string{"BATON_SIM_GRADE=light", "BATON_SIM_SEEDS=" + lightSeeds, "BATON_SIM_HOURS=" + lightHours}},
	{name: "whole", args: sim, env: []string{"BATON_SIM_GRADE=whole", "BATON_SIM_SEEDS=" + wholeSeeds, "BATON_SIM_HOURS=" + wholeHours}},
}

func sim(Mutant) []string {
	return []string{"-run", "^TestSim$", "-timeout", "20m", "./test/sim"}
}

// TestCaught plants each mutant and runs the tests that ought to notice. None
// may survive.
func TestCaught(t *testing.T) {
	run := os.Getenv(envRun)
	if run == "" {
		t.Skip("tests the tests for many minutes: make mutants")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range All {
		if run != "1" && !strings.Contains(","+run+",", ","+m.Name+",") {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			overlay, err := m.Overlay(root, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if caught := try(t, root, overlay, m); len(caught) == 0 {
				t.Errorf("survives: %s", m.Fault)
			} else {
				t.Logf("%-24s %-68s %s", m.Name, m.Fault, strings.Join(caught, ", "))
			}
		})
	}
}

// try returns the layers that noticed, and how long each took.
func try(t *testing.T, root, overlay string, m Mutant) (caught []string) {
	t.Helper()
	for _, l := range layers {
		args := l.args(m)
		if only := os.Getenv(envLayers); only != "" && !strings.Contains(","+only+",", ","+l.name+",") {
			continue
		}
		if args == nil || len(caught) > 0 && os.Getenv(envAll) == "" {
			continue
		}
		began := time.Now()
		cmd := exec.CommandContext(context.Background(), "go", append([]string{"test", "-count=1", "-overlay", overlay}, args...)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), l.env...)
		out, err := cmd.CombinedOutput()
		// What the property tests keep of their failures is of no use to the product.
		_ = os.RemoveAll(filepath.Join(root, m.Package, "testdata", "rapid"))
		switch {
		case err == nil:
		case !failedTest(string(out)):
			t.Fatalf("%s does not build:\n%s", m.Name, out)
		default:
			caught = append(caught, fmt.Sprintf("%s (%.0f s)", l.name, time.Since(began).Seconds()))
		}
	}
	return caught
}

// failedTest reports that a test failed, and not the build.
func failedTest(out string) bool {
	return strings.Contains(out, "--- FAIL") || strings.Contains(out, "panic:") || strings.Contains(out, "fatal error:")
}
