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
	env  func(m Mutant) []string // nil: none
}

// Seeds and hours are what the simulation gets to see a mutant in.
const (
	simSeeds   = "1-4"
	stormHours = "0.1" // the faults that the mutant names, without calm
	lightHours = "0.3"
	wholeHours = "0.1"
)

// layers, the cheapest first.
var layers = []layer{
	{name: "unit", args: unit},
	{name: "explore", args: func(Mutant) []string { return []string{"./test/explore"} }},
	{name: "matrix", args: func(Mutant) []string { return []string{"./test/matrix"} }},
	{name: "storm", args: func(m Mutant) []string {
		if m.Storm == "" {
			return nil
		}
		return sim(m)
	}, env: func(m Mutant) []string {
		return append(grade("light", stormHours), "BATON_SIM_FAULTS="+m.Storm)
	}},
	{name: "light", args: sim, env: func(Mutant) []string { return grade("light", lightHours) }},
	{name: "whole", args: sim, env: func(Mutant) []string { return grade("whole", wholeHours) }},
}

// unit is the mutant's package: all its tests, or those that see the fault without
// fail.
func unit(m Mutant) []string {
	switch {
	case m.Package == "":
		return nil
	case m.Tests != "":
		return []string{"-run", "^" + m.Tests + "$", "./" + m.Package}
	}
	return []string{"./" + m.Package}
}

func sim(Mutant) []string {
	return []string{"-run", "^TestSim$", "-timeout", "20m", "./test/sim"}
}

func grade(name, hours string) []string {
	return []string{"BATON_SIM_GRADE=" + name, "BATON_SIM_SEEDS=" + simSeeds, "BATON_SIM_HOURS=" + hours}
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
		cmd := exec.CommandContext(context.Background(), "go", append([]string{"test", "-count=1", "-failfast", "-overlay", overlay}, args...)...)
		cmd.Dir, cmd.Env = root, os.Environ()
		if l.env != nil {
			cmd.Env = append(cmd.Env, l.env(m)...)
		}
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
