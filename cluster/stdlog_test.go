package cluster

import (
	"log"
	"os"
	"testing"
)

// TestStandardLoggerIsThePrograms: linking Baton changes nothing for a program's
// own log lines.
func TestStandardLoggerIsThePrograms(t *testing.T) {
	if log.Writer() != os.Stderr || log.Flags() != log.LstdFlags || log.Prefix() != "" {
		t.Errorf("the standard logger writes to %T with flags %d and prefix %q, want standard error as in any program",
			log.Writer(), log.Flags(), log.Prefix())
	}
}
