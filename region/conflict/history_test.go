package conflict

import (
	"testing"
)

// fail reports a history that fails, shrunk.
func fail(t *testing.T, h *history) {
	t.Helper()
	small := h.shrink()
	err := small.trace(t.Logf)
	t.Fatalf("%v\n%v", err, small)
}

func TestHistories(t *testing.T) {
	count := uint64(20000)
	if testing.Short() {
		count = 1500
	}
	for seed := range count {
		if h := makeHistory(seed, 10+int(seed%60)); h.run() != nil {
			fail(t, h)
		}
	}
}
