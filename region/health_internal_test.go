package region

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A region whose addresses refuse is away at once, nearly: one address that fails is
// not the region, and silence may be a slow line.
func TestARegionThatRefusesIsSoonSaidToBeAway(t *testing.T) {
	heard := time.Unix(1000, 0)
	for _, c := range []struct {
		err     error
		after   time.Duration
		answers bool
	}{
		{nil, 0, true}, {nil, 9 * time.Second, true}, {nil, 10 * time.Second, false},
		{io.EOF, 2 * time.Second, true}, {io.EOF, 3 * time.Second, false},
	} {
		k := &link{at: heard, err: c.err}
		require.Equal(t, c.answers, k.answers(heard.Add(c.after)), "%v after %s", c.err, c.after)
	}
	require.False(t, (&link{}).answers(heard), "never heard")
}
