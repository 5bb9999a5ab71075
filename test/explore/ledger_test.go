package explore

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/baton-cluster/baton/test/mutants"
)

// ledger has each rule that a counterexample to an earlier draft asked for (by
// the numbers of ARCHITECTURE.md, and "Life of a write" as W, leases as L), the
// scenario that tells the counterexample, and the mutant that takes the rule out.
// Where the rule is kept by code with goroutines, the scenario is a test of that
// package.
var ledger = []struct{ rule, pkg, scenario, mutant string }{
	{"S1 one entry makes two epochs", "test/explore", "TestScenarios/one_entry_makes_two_epochs", "epoch-of-index"},
	{"S1 epochs rise across re-creation", "store", "TestEpochsRise", "epoch-reset"},
	{"S1 a restored cluster's epochs are above all that were", "store", "TestReborn", "epochs-of-a-former-cluster"},
	{"S1 a restored cluster has fenced everybody", "store", "TestReborn", "incarnations-of-a-former-cluster"},
	{"S1 a restored cluster assigns nothing for a while", "store", "TestRebornRests", "owners-of-a-former-cluster"},
	{"S2 Assign names the epoch that it replaces", "test/explore", "TestScenarios/a_late_Assign", "assign-any-epoch"},
	{"S2 a valid owner is not replaced", "test/explore", "TestScenarios/a_late_Assign", "assign-over-owner"},
	{"S2 Assign ends the migration", "test/explore", "TestScenarios/assigning_ends_the_move", "assign-leaves-migration"},
	{"S4 log time runs on, whoever leads", "test/explore", "TestScenarios/time_does_not_go_back", "time-runs-back"},
	{"S4 log time is no wall clock", "test/sim", "TestWallClockSteps", "wall-clock"},
	{"S7 a late Attach opens nothing", "test/explore", "TestScenarios/late_Attach_and_Detach", "delayed-attach"},
	{"S7 a late Detach closes nothing", "test/explore", "TestScenarios/late_Attach_and_Detach", "delayed-detach"},
	{"S7 nothing is served from a Detach on", "worker", "TestDetachServesNothing", "serves-the-detached"},
	{"S7 a Detach is repeated until it is settled", "worker", "TestDetachServesNothing", "detach-once"},
	{"S7 a change of owner detaches", "test/explore", "TestScenarios/assigning_detaches", "assign-keeps-attachments"},
	{"S7 a pivot attaches who is warm, and nobody else", "test/explore", "TestScenarios/the_pivot_attaches_who_is_warm", "pivot-keeps-attachments"},
	{"S7 who was warm and is gone is detached", "worker", "TestWarmClientGoneAtThePivot", "orphans-stay"},
	{"S9 control commands are not refused for space", "store", "TestByteBudget", "attach-refused-for-space"},
	{"W1 each instance has its own window", "test/explore", "TestScenarios/each_instance_has_its_own_seqs", "one-window"},
	{"W2 an activation follows without a gap", "worker", "TestResultThatDoesNotFollowLeadsToClaim", "activation-with-a-gap"},
	{"W3 a failure is an outcome", "test/explore", "TestScenarios/a_failure_is_an_outcome", "errors-not-kept"},
	{"W5 the window comes before the previous seq", "test/explore", "TestScenarios/the_window_first", "dedup"},
	{"W5 a mismatch is refused", "test/explore", "TestScenarios/the_window_first", "no-previous-seq"},
	{"W6 what built on a refused write is discarded", "worker", "TestRefusedMemberDiscardsWhatBuiltOnIt", "no-previous-seq"},
	{"L2 a withdrawal binds", "lease", "TestExplore", "promise-after-withdrawal"},
	{"L3 a restarted server waits", "lease", "TestExplore", "restart-withdraws"},
	{"L4 the configuration is that of log and state", "lease", "TestExplore/voters_have_changed", "grant-in-any-config"},
	{"L reads look at the clock after they arrived", "worker", "TestReadsOfPausedOwners", "early-clock"},
	{"L a start elsewhere waits", "test/explore", "TestScenarios/a_start_on_another_machine", "any-place"},
	{"H1 nothing is activated under a freeze", "worker", "TestAttachAnsweredUnderFreeze", "activates-under-freeze"},
	{"H1 an attestation names its move", "test/explore", "TestScenarios/attested_for_another_move", "not-attested"},
	{"H2 the source's epoch and owner are those of commit 1", "test/explore", "TestScenarios/assigning_ends_the_move", "assign-leaves-migration"},
	{"H2 the target is the incarnation of commit 1", "test/explore", "TestScenarios/a_target_that_started_anew", "pivot-to-the-dead"},
	{"H2 the row has not changed", "test/explore", "TestScenarios/a_row_that_changed", "stale-snapshot"},
	{"H2 the deadline", "test/explore", "TestScenarios/a_pivot_past_its_deadline", "pivot-late"},
	{"H3 the log decides once", "test/explore", "TestScenarios/a_pivot_after_the_abort", "pivot-after-abort"},
	{"H3 one move at a time", "test/explore", "TestScenarios/a_pivot_after_the_abort", "two-migrations"},
	{"H3 a source goes on when the log has spoken", "worker", "TestTransferAnswerLost", "unfreeze-unasked"},
	{"H3 a claim that is older than the activation is made again", "worker", "TestWriteOvertakesTheAbort", "older-claim"},
}

// TestLedger: every rule of the ledger has its mutant and its scenario.
func TestLedger(t *testing.T) {
	for _, e := range ledger {
		if _, ok := mutants.Find(e.mutant); !ok {
			t.Errorf("%s: no mutant %q", e.rule, e.mutant)
		}
		name, _, _ := strings.Cut(e.scenario, "/")
		if !hasTest(t, e.pkg, name) {
			t.Errorf("%s: package %s has no %s", e.rule, e.pkg, name)
		}
	}
}

func hasTest(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	decl := regexp.MustCompile(`(?m)^func ` + name + `\w*\(`)
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if decl.Match(src) {
			return true
		}
	}
	return false
}

// TestLedgerMutants: with its rule taken out, each scenario fails.
func TestLedgerMutants(t *testing.T) {
	run := os.Getenv("BATON_MUTANTS")
	if run == "" {
		t.Skip("builds the product anew for each mutant: make mutants")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ledger {
		m, ok := mutants.Find(e.mutant)
		if !ok || run != "1" && !strings.Contains(","+run+",", ","+e.mutant+",") {
			continue
		}
		t.Run(e.rule, func(t *testing.T) {
			overlay, err := m.Overlay(root, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("go", "test", "-count=1", "-overlay", overlay, "-run", pattern(e.scenario), "./"+e.pkg)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL") && !strings.Contains(string(out), "panic:") {
				t.Errorf("%s survives %s: %v\n%s", e.mutant, e.scenario, err, out)
			}
		})
	}
}

// pattern selects a scenario for go test -run.
func pattern(scenario string) string {
	name, sub, has := strings.Cut(scenario, "/")
	if !has {
		return "^" + name
	}
	return "^" + name + "$/^" + sub
}
