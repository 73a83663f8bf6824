package replication

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestNamesAreShared(t *testing.T) {
	decode := func() Node {
		var n Node
		require.NoError(t, n.UnmarshalJSON([]byte(`{"id":"a","labels":["Person"],"properties":{"name":1}}`)))
		return n
	}
	a, b := decode(), decode()
	require.Same(t, unsafe.StringData(a.Labels[0]), unsafe.StringData(b.Labels[0]))
	long := []byte(strings.Repeat("x", maxNameBytes+1))
	require.NotSame(t, unsafe.StringData(names.of(long)), unsafe.StringData(names.of(long)), "what is held is bounded")
}

// Many goroutines with more names than there are slots each get their own.
func TestNamesUnderContention(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 4 * len(names.slots) {
				name := fmt.Sprint("name", i)
				if got := names.of([]byte(name)); got != name {
					t.Errorf("%q for %q", got, name)
				}
			}
		})
	}
	wg.Wait()
}
