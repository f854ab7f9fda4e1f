import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.net.ServerSocket;
import java.net.Socket;
import java.security.MessageDigest;
import java.util.Arrays;

/** Transfers over java.net sockets: a thread reads, another writes. The protocol is in README.md. */
public class PeerBlocking {
    static final int PERIOD = 65521;

    static byte[] pattern(int salt, int size) {
        byte[] data = new byte[size];
        for (int i = 0; i < size; i++) {
            int at = i % PERIOD;
            data[i] = (byte) (at * 7 + (at >> 8) * 13 + salt);
        }
        return data;
    }

    static void fail(Throwable problem) {
        problem.printStackTrace();
        System.exit(1);
    }

    static Thread write(Socket socket, byte[] data, boolean end) {
        Thread writer = new Thread(() -> {
            try {
                for (int at = 0; at < data.length; at += 30000) {
                    socket.getOutputStream().write(data, at, Math.min(30000, data.length - at));
                }
                if (end) {
                    socket.shutdownOutput();
                }
            } catch (Exception problem) {
                fail(problem);
            }
        });
        writer.start();
        return writer;
    }

    static void ensureEnd(DataInputStream in) throws Exception {
        if (in.read() >= 0) {
            throw new EOFException("more came than was announced");
        }
    }

    static void serve(Socket socket) {
        try (socket) {
            DataInputStream in = new DataInputStream(socket.getInputStream());
            byte[] data = new byte[(int) in.readLong() ];
            Thread writer = write(socket, pattern(2, (int) in.readLong()), false);
            in.readFully(data);
            ensureEnd(in);
            writer.join();
            socket.getOutputStream().write(MessageDigest.getInstance("SHA-256").digest(data));
        } catch (Exception problem) {
            fail(problem);
        }
    }

    static void transfer(String host, int port, int upward, int downward) throws Exception {
        try (Socket socket = new Socket(host, port)) {
            byte[] data = pattern(1, upward);
            DataOutputStream out = new DataOutputStream(socket.getOutputStream());
            out.writeLong(upward);
            out.writeLong(downward);
            Thread writer = write(socket, data, true);
            DataInputStream in = new DataInputStream(socket.getInputStream());
            byte[] got = new byte[downward];
            byte[] digest = new byte[32];
            in.readFully(got);
            in.readFully(digest);
            ensureEnd(in);
            writer.join();
            if (!Arrays.equals(got, pattern(2, downward))) {
                throw new Exception("the bytes from the server are not the ones it sent");
            }
            if (!Arrays.equals(digest, MessageDigest.getInstance("SHA-256").digest(data))) {
                throw new Exception("the bytes at the server are not the ones that were sent");
            }
        }
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("server")) {
            ServerSocket listener = new ServerSocket(Integer.parseInt(args[1]));
            System.out.println("listening");
            while (true) {
                Socket socket = listener.accept();
                new Thread(() -> serve(socket)).start();
            }
        }
        for (int i = 3; i < args.length; i++) {
            String[] sizes = args[i].split(":");
            transfer(args[1], Integer.parseInt(args[2]), Integer.parseInt(sizes[0]), Integer.parseInt(sizes[1]));
        }
        System.out.println("ok " + (args.length - 3));
    }
}
