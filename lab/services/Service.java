import com.sun.net.httpserver.HttpServer;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.io.RandomAccessFile;
import java.io.Writer;
import java.net.InetSocketAddress;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayDeque;
import java.util.HexFormat;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A service on a JVM: a pool of threads, a heap that is collected all the time and whose content is checked, a file
 * that is mapped, a child behind pipes. GET /visit/KEY/NUMBER answers with what each of them makes of it.
 */
public final class Service {
  private static final Map<String, Long> COUNTS = new ConcurrentHashMap<>();
  private static final AtomicLong TICKS = new AtomicLong();
  private static final AtomicLong WRONG = new AtomicLong();

  /** Makes garbage, keeps some of it for a while, and looks whether it stayed what it was. */
  private static void churn() {
    ArrayDeque<long[]> kept = new ArrayDeque<>();
    for (long seed = 1; ; seed++) {
      long[] block = new long[1 + (int) (seed * 31 % 4096)];
      java.util.Arrays.fill(block, seed);
      kept.addLast(block);
      if (kept.size() > 400) {
        long[] old = kept.removeFirst();
        if (old[0] != seed - 400 || old[old.length - 1] != seed - 400) {
          WRONG.incrementAndGet();
        }
      }
      if (seed % 64 == 0) {
        java.util.concurrent.locks.LockSupport.parkNanos(1_000_000);
      }
    }
  }

  public static void main(String[] arguments) throws Exception {
    Thread churner = new Thread(Service::churn);
    churner.setDaemon(true);
    churner.start();
    Executors.newScheduledThreadPool(1).scheduleAtFixedRate(TICKS::incrementAndGet, 10, 10, TimeUnit.MILLISECONDS);

    RandomAccessFile file = new RandomAccessFile("/tmp/mapped", "rw");
    MappedByteBuffer mapped = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 1 << 16);
    Process cat = new ProcessBuilder("/bin/cat").start();
    Writer toCat = new OutputStreamWriter(cat.getOutputStream(), StandardCharsets.US_ASCII);
    BufferedReader fromCat = new BufferedReader(new InputStreamReader(cat.getInputStream(), StandardCharsets.US_ASCII));

    HttpServer server = HttpServer.create(new InetSocketAddress(8080), 64);
    server.setExecutor(Executors.newFixedThreadPool(8));
    server.createContext("/visit/", exchange -> {
      String[] parts = exchange.getRequestURI().getPath().split("/");
      long count = COUNTS.merge(parts[2], 1L, Long::sum);
      String hash;
      try {
        hash = HexFormat.of().formatHex(
            MessageDigest.getInstance("SHA-256").digest((parts[2] + parts[3]).getBytes(StandardCharsets.US_ASCII)));
      } catch (java.security.NoSuchAlgorithmException e) {
        throw new java.io.IOException(e);
      }
      String echo;
      long sum;
      synchronized (cat) {
        toCat.write(parts[3] + "\n");
        toCat.flush();
        echo = fromCat.readLine();
        sum = mapped.getLong(8) + 1;
        mapped.putLong(8, sum);
      }
      byte[] body = String.format("{\"count\":%d,\"hash\":\"%s\",\"sum\":%d,\"kept\":\"%s\",\"ticks\":%d,\"wrong\":%d}",
          count, hash, sum, echo, TICKS.get(), WRONG.get()).getBytes(StandardCharsets.US_ASCII);
      exchange.sendResponseHeaders(200, body.length);
      exchange.getResponseBody().write(body);
      exchange.close();
    });
    server.start();
  }
}
